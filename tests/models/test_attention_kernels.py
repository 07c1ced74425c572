"""Attention kernels agree with torch's dense kernel for every mask."""

from __future__ import annotations

import itertools
import logging
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.attention.flex_attention
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from cram_composer.models import attention_kernels
from cram_composer.models.attention_kernels import EagerAttention, FlashAttention, FlexAttention, choose_attention
from cram_composer.models.crambert.attention import DENSE, AttentionKernel
from tests.models.tiny_models import tiny_model, training_batch


@pytest.fixture(autouse=True)
def flex_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the refusal of gradients on a CPU, newer than torch 2.7: uncompiled, flex_attention is plain arithmetic."""
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *_: None)


DOCUMENTS = torch.tensor([[0] * 9 + [1] * 7, [0] * 3 + [1] * 10 + [-1] * 3, [0] * 16])
PADDING = torch.tensor([[1] * 16, [1] * 5 + [0] * 11, [1] * 12 + [0] * 4])
CAUSAL = torch.tensor([True, False, True])
LIMITS = {
    "nothing": {},
    "documents": {"document_ids": DOCUMENTS},
    "padding": {"attention_mask": PADDING},
    "causal rows": {"causal": CAUSAL},
    "documents and causal rows": {"document_ids": DOCUMENTS, "causal": CAUSAL},
}
MODELS = {
    "plain": {},
    "local": {"local_window": 4, "global_every": 2},
    "alibi": {"positions": "alibi", "num_attention_heads": 2},
    "local rotary": {"positions": "rotary", "local_window": 4, "global_every": 2},
}


def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **settings):
    """Compute segment by segment as flash-attn documents for `flash_attn_varlen_func`."""
    assert settings.keys() == {"dropout_p", "window_size", "alibi_slopes"}
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    out = torch.empty_like(q)
    for start, end in itertools.pairwise(cu_seqlens_q.tolist()):
        assert 0 < end - start <= max_seqlen_q == max_seqlen_k
        place = torch.arange(end - start)
        distance = (place[:, None] - place).abs()
        bias = torch.zeros(distance.shape)
        before, after = settings["window_size"]
        assert before == after
        if before >= 0:
            bias = bias.masked_fill(distance > before, float("-inf"))
        if settings["alibi_slopes"] is not None:
            bias = bias - settings["alibi_slopes"][:, None, None] * distance
        part = (x[start:end].transpose(0, 1)[None] for x in (q, k, v))
        attended = F.scaled_dot_product_attention(*part, attn_mask=bias, dropout_p=settings["dropout_p"])
        out[start:end] = attended[0].transpose(0, 1)
    return out


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = varlen
    monkeypatch.setitem(sys.modules, "flash_attn", package)


def hidden_and_gradients(kernel: AttentionKernel, model_settings: dict, limits: dict) -> list[torch.Tensor]:
    model = tiny_model(**model_settings).train().encoder
    model.attention_kernel = kernel
    hidden = model(training_batch()["input_ids"], **limits).last_hidden_state
    if "attention_mask" in limits:  # outputs at padding are unused and differ
        hidden = hidden * limits["attention_mask"][..., None]
    return [hidden, *torch.autograd.grad(hidden.square().sum(), list(model.parameters()))]


def agree(kernel: AttentionKernel, model_settings: dict, limits: dict) -> None:
    expected = hidden_and_gradients(DENSE, model_settings, limits)
    found = hidden_and_gradients(kernel, model_settings, limits)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("model", MODELS)
def test_eager_is_dense_attention(model: str, limits: str, monkeypatch: pytest.MonkeyPatch):
    agree(EagerAttention(), MODELS[model], LIMITS[limits])
    monkeypatch.setattr(torch, "matmul", lambda *args: pytest.fail("rows are longer than that"))
    agree(EagerAttention(longest=8), MODELS[model], LIMITS[limits])


@pytest.mark.parametrize("stack", ["funnel", "token-dropping"])
def test_eager_supports_shortened_rows(stack: str):
    agree(EagerAttention(), {"stack": stack, "num_hidden_layers": 6}, {"document_ids": DOCUMENTS})


def test_eager_drops_weights_in_training():
    query = torch.ones(1, 1, 64, 4)
    kept = EagerAttention().attend(query, query, query, None, 0.5)
    assert kept.unique().numel() > 1 and kept.mean() == pytest.approx(1.0, abs=0.1)


def test_auto_is_eager_on_a_cpu_and_sdpa_on_a_gpu():
    assert isinstance(choose_attention("auto", "cpu", "bf16")[0], EagerAttention)
    assert choose_attention("auto", "gpu", "bf16") == choose_attention("sdpa", "gpu", "bf16")
    assert choose_attention("sdpa", "cpu", "bf16")[0] is DENSE


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("model", MODELS)
def test_flex_is_dense_attention(model: str, limits: str):
    agree(FlexAttention(compile=False), MODELS[model], LIMITS[limits])


@pytest.mark.parametrize("limits", ["nothing", "documents", "padding"])
@pytest.mark.parametrize("model", MODELS)
def test_flash_is_dense_attention(model: str, limits: str, flash_attn: None):
    agree(FlashAttention(), MODELS[model], LIMITS[limits])


def test_flex_skips_blocks_without_a_key():
    config = tiny_model(max_position_embeddings=1024).config
    documents = torch.arange(4).repeat_interleave(256)[None]
    rows = attention_kernels.Rows(config, False, 1, 1024, torch.device("cpu"), torch.float32, None, documents, None)
    assert FlexAttention(compile=False).mask(rows).blocks.sparsity() == 75.0


def test_new_documents_make_no_new_graph():
    """Masks differ between batches; a graph for each would recompile in every step."""
    model = tiny_model().train().encoder
    model.attention_kernel = FlexAttention(compile=False)
    counter = CompileCounter()
    for layer in model.layers:
        layer.compile(backend=counter, fullgraph=True)
    frames = []
    for step in range(3):
        documents = DOCUMENTS.roll(step, dims=0).contiguous()
        model(training_batch()["input_ids"], document_ids=documents)
        frames.append(counter.frame_count)
    assert frames[0] > 0
    assert frames[2] == frames[0]


def test_evaluation_is_dense(monkeypatch: pytest.MonkeyPatch):
    kernel = FlexAttention(compile=False)
    monkeypatch.setattr(kernel, "attend", lambda *args: pytest.fail("was asked"))
    model = tiny_model().eval()
    model.encoder.attention_kernel = kernel
    assert model(**training_batch()).loss.isfinite()


@pytest.mark.parametrize(
    ("asked", "device", "precision", "reason"),
    [
        ("flex", "cpu", "bf16", "flex is unavailable (needs a GPU)"),
        ("flash", "gpu", "fp32", "flash is unavailable (needs precision bf16 or fp16, got fp32)"),
        ("flash", "gpu", "bf16", "flash is unavailable (import of flash_attn halted"),
    ],
)
def test_unavailable_kernels_are_reported(asked, device, precision, reason, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with caplog.at_level(logging.WARNING):
        kernel, name = choose_attention(asked, device, precision)
    assert kernel is DENSE
    assert name == "torch scaled_dot_product_attention"
    assert reason in caplog.text


def test_available_kernels_are_named(flash_attn: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention_kernels.importlib.metadata, "version", lambda name: "2.8.3")
    assert choose_attention("flash", "gpu", "bf16")[1] == "flash-attn 2.8.3 (varlen)"
    assert "flex_attention" in choose_attention("flex", "gpu", "bf16")[1]
    assert choose_attention("sdpa", "gpu", "bf16") == (DENSE, "torch scaled_dot_product_attention")
