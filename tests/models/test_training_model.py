from __future__ import annotations

import logging
import os
import subprocess
import sys
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from transformers import AutoConfig, AutoModelForMaskedLM

from cram_composer.models.compilation import compile_model
from cram_composer.models.training_model import MaskedLMTrainingModel
from tests.conftest import REPOSITORY
from tests.models.tiny_models import tiny_model, training_batch


def hugging_face_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    extra = {"reference_compile": False} if name == "modernbert" else {}
    config = AutoConfig.for_model(name, intermediate_size=32, **sizes, **special, **extra)
    return AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa")


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_hugging_face_models_train_on_masked_positions(name):
    model = MaskedLMTrainingModel(hugging_face_model(name).eval())  # without dropout, to compare
    batch = training_batch()
    outputs = model(batch)
    logits = outputs.logits[torch.arange(3)[:, None], batch["masked_positions"]]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    loss = model.loss(outputs, batch)["total"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "token_type" not in n and p.requires_grad)


def test_padding_is_hidden_from_hugging_face_models():
    model = MaskedLMTrainingModel(hugging_face_model("bert").eval())
    batch = training_batch() | {"attention_mask": (torch.arange(16) < 12).long().expand(3, 16)}
    changed = batch | {"input_ids": torch.where(torch.arange(16) < 12, batch["input_ids"], 7)}
    torch.testing.assert_close(model(batch).logits[:, :12], model(changed).logits[:, :12])


def test_autocast_computes_in_its_dtype_and_the_loss_in_fp32():
    batch = training_batch()
    outputs = MaskedLMTrainingModel(tiny_model(), autocast_dtype=torch.bfloat16)(batch)
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.loss.dtype == torch.float32
    exact = MaskedLMTrainingModel(tiny_model())(batch)
    assert exact.logits.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, exact.loss, rtol=0.01, atol=0)


@pytest.mark.parametrize("architecture", ["crambert", "bert"])
def test_metrics_add_up_over_batches_of_different_sizes(architecture):
    hf_model = tiny_model() if architecture == "crambert" else hugging_face_model("bert").eval()
    model = MaskedLMTrainingModel(hf_model)
    batches = [training_batch(rows=3), training_batch(rows=1, masked=2), training_batch(rows=2, length=9)]
    metrics = model.get_metrics(is_train=False)
    assert set(metrics) == {"loss", "accuracy"}
    assert model.get_metrics(is_train=True) == {}
    nats, right, count = 0.0, 0, 0
    for batch in batches:
        outputs = model.eval_forward(batch)
        for metric in metrics.values():
            model.update_metric(batch, outputs, metric)
        used = batch["labels"] != -100
        nats += outputs.loss.item() * int(used.sum())
        count += int(used.sum())
        logits = outputs.logits
        if architecture == "bert":
            logits = logits[torch.arange(len(logits))[:, None], batch["masked_positions"]]
        right += int((logits.argmax(-1) == batch["labels"])[used].sum())
    assert metrics["loss"].compute().item() == pytest.approx(nats / count, rel=1e-6)
    assert metrics["accuracy"].compute().item() == pytest.approx(right / count)


def test_an_evaluation_given_outputs_uses_them():
    model, batch = MaskedLMTrainingModel(tiny_model()), training_batch()
    outputs = model(batch)
    assert model.eval_forward(batch, outputs) is outputs


def compiled(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if module._compiled_call_impl is not None}


def test_each_mode_compiles_its_modules():
    for mode, expected in (
        ("off", set()),
        ("regional", {"model.encoder.layers.0", "model.encoder.layers.1", "model.head"}),
        ("full", {"model"}),
    ):
        assert compiled(MaskedLMTrainingModel(tiny_model(), compile=mode)) == expected
    bert = MaskedLMTrainingModel(hugging_face_model("bert"), compile="regional")
    assert compiled(bert) == {"model.bert.encoder.layer.0", "model.bert.encoder.layer.1"}
    assert compile_model(nn.Linear(2, 2), "regional"), "a model without a list of layers is compiled whole"


def test_compilation_changes_neither_names_nor_results(monkeypatch):
    """The eager backend builds the same graphs without minutes of Inductor."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(_compile_with, backend="eager"))
    torch._dynamo.reset()
    batch = training_batch()
    plain = MaskedLMTrainingModel(tiny_model())
    expected = plain(batch).loss
    for mode, graphs in (("regional", 2), ("full", 1)):
        torch._dynamo.utils.counters.clear()
        model = MaskedLMTrainingModel(tiny_model(), compile=mode)
        assert list(model.state_dict()) == list(plain.state_dict())
        torch.testing.assert_close(model(batch).loss, expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "one graph serves both layers"
        assert not torch._dynamo.utils.counters["graph_break"]
        model.eval_forward(training_batch(rows=2))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "evaluation runs eagerly"
        assert model.compile_state == mode


def _compile_with(module: nn.Module, backend, **kwargs) -> None:
    module._compiled_call_impl = torch.compile(module._call_impl, backend=backend, **kwargs)


def test_a_failed_compilation_falls_back_to_eager(tmp_path):
    script = f"""
import logging, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
logging.basicConfig(level=logging.WARNING, format="WARNED %(name)s %(message)s")
from tests.models.tiny_models import tiny_model, training_batch
from cram_composer.models.training_model import MaskedLMTrainingModel
model = MaskedLMTrainingModel(tiny_model(), compile="regional")
batch = training_batch()
expected = MaskedLMTrainingModel(tiny_model())(batch).loss
for _ in range(2):
    loss = model(batch).loss
    loss.backward()
    assert loss == expected
print(model.compile_state)
"""
    environment = {**os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("off (failed: InvalidCxxCompiler: No working C++ compiler found")
    assert child.stderr.count("WARNED cram_composer.models.training_model torch.compile failed") == 1


def test_a_failed_compilation_of_the_backward_falls_back_too(monkeypatch, caplog):
    def refuse(graph, inputs):
        raise InductorError(RuntimeError("no such backward"), None)

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=refuse)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(_compile_with, backend=backend))
    torch._dynamo.reset()
    batch = training_batch()
    model = MaskedLMTrainingModel(tiny_model(hidden_dropout_prob=0.2), compile="regional")
    plain = MaskedLMTrainingModel(tiny_model(hidden_dropout_prob=0.2))
    torch.manual_seed(5)
    loss = model(batch).loss
    torch.manual_seed(5)
    torch.testing.assert_close(loss, plain(batch).loss, msg="the attempt leaves the random numbers where they were")
    loss.backward()
    assert model.compile_state == "off (failed: RuntimeError: no such backward)"
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    assert not compiled(model)


def test_an_error_of_the_model_is_raised_unchanged(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(_compile_with, backend="eager"))
    torch._dynamo.reset()
    model = MaskedLMTrainingModel(tiny_model(), compile="full")
    with pytest.raises(RuntimeError, match="must match the size") as error:
        model(training_batch(length=25))  # beyond max_position_embeddings
    assert not isinstance(error.value, TorchDynamoException)


def test_cached_code_for_other_threads_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (2, 2, 1):
            torch.set_num_threads(threads)
            torch.compiler.reset()
            torch._dynamo.utils.counters.clear()
            module = nn.Sequential(nn.Linear(8, 8), nn.GELU())
            compile_model(module, "full")
            module(torch.ones(4, 8)).sum().backward()
            counted = torch._dynamo.utils.counters["inductor"]
            found.append((counted["fxgraph_cache_hit"] > 0, counted["fxgraph_cache_miss"] > 0))
    finally:
        torch.set_num_threads(before)
        torch.compiler.reset()
    assert found == [(False, True), (True, False), (False, True)]
