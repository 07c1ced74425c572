"""Every setting of the model section has its documented effect, and its neutral value gives the plain model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cram_composer.config.schema.model import ModelConfig
from cram_composer.models.crambert.attention import DENSE, Context, SelfAttention, contexts
from cram_composer.models.crambert.feedforward import FEEDFORWARDS
from cram_composer.models.crambert.layer import CramBertLayer
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.crambert.positions import alibi_bias, rotary_table, rotate
from cram_composer.models.factory import build_model
from tests.models.tiny_models import tiny_config, tiny_model, training_batch

EMPTY = Context(None, None)


def model(**changes) -> CramBertForMaskedLM:
    """Build a model in evaluation mode whose weights are large enough for every part to have an effect."""
    made = tiny_model(num_hidden_layers=6, **changes).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return made


def logits(made: CramBertForMaskedLM, input_ids: torch.Tensor | None = None, **more: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return made(training_batch()["input_ids"] if input_ids is None else input_ids, **more).logits


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "rmsnorm"},
        {"norm_bias": False},
        {"norm_position": "post"},
        {"norm_position": "sandwich"},
        {"embedding_norm": False},
        {"first_norm": False},
        {"final_norm": False},
        {"qk_norm": True},
        {"attention_gate": True},
        {"ffn": "gelu"},
        {"ffn": "swiglu"},
        {"ffn": "relu2"},
        {"ffn_every": 2},
        {"positions": "learned"},
        {"positions": "sinusoidal"},
        {"positions": "rotary"},
        {"positions": "alibi"},
        {"positions": "none"},
        {"local_window": 4},
        {"local_window": 4, "positions": "rotary", "local_rope_theta": 100.0},
        {"attention_bias": True, "mlp_bias": True},
        {"value_embeddings": 2},
        {"short_convolution": 3},
        {"short_convolution": 5, "norm_position": "post", "ffn_every": 2},
        {"head_transform": True, "head_bias": True},
        {"tie_word_embeddings": False},
        {"logit_softcap": 5.0},
        {"stack": "input-skip"},
        {"stack": "elc"},
        {"stack": "recurrent", "repeats": 2},
        {"stack": "funnel"},
        {"stack": "token-dropping"},
        {"output_init": "zero"},
        {"output_init": "scaled"},
        {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    ],
    ids=lambda changes: "-".join(map(str, next(iter(changes.items())))),
)
def test_every_setting_trains_all_parameters(changes):
    made = tiny_model(num_hidden_layers=6, **changes)
    batch = training_batch()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):  # weights that start at zero block gradients in the first step
        optimizer.zero_grad()
        loss = made(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    idle = [name for name, p in made.named_parameters() if p.grad is None]
    assert not idle, "parameters without effect on the loss"


def test_rotary_scores_depend_only_on_distances():
    table = rotary_table(32, 8, 10000.0, torch.device("cpu"))
    query, key = torch.randn(8), torch.randn(8)
    turned_query, turned_key = (rotate(x.expand(1, 1, 32, 8), table)[0, 0] for x in (query, key))
    products = turned_query @ turned_key.T
    assert torch.allclose(products.diagonal(3), products[0, 3].expand(29), atol=1e-5)
    assert torch.allclose(products[0, 0], query @ key, atol=1e-5)
    assert not torch.allclose(products[0, 1], products[0, 9], atol=1e-3)


def test_alibi_by_hand():
    bias = alibi_bias(3, 4, torch.device("cpu"))[0]
    distances = torch.tensor([[0, 1, 2], [1, 0, 1], [2, 1, 0]])
    for head, slope in enumerate((1 / 4, 1 / 16, 1 / 64, 1 / 256)):
        assert torch.equal(bias[head], -slope * distances)
    # 12 heads: the slopes of 8 heads, then every second slope of 16.
    slopes = -alibi_bias(2, 12, torch.device("cpu"))[0, :, 0, 1]
    expected = [2.0**-k for k in range(1, 9)] + [2.0 ** (-k / 2) for k in (1, 3, 5, 7)]
    assert torch.allclose(slopes, torch.tensor(expected))


def influence(made: CramBertForMaskedLM, of: int, **more: torch.Tensor) -> torch.Tensor:
    """Return the positions [B, L] whose logits change with the token at position `of`."""
    ids = training_batch()["input_ids"]
    changed = ids.clone()
    changed[:, of] = (changed[:, of] + 1) % 40
    return (logits(made, ids, **more) - logits(made, changed, **more)).abs().amax(-1) > 0


def test_local_layers_see_their_window_and_every_third_is_global():
    one = {"num_hidden_layers": 2, "global_every": 2, "local_window": 4}
    config = tiny_config(**one)
    hidden = torch.randn(1, 16, 16)
    layer = CramBertLayer(config, 1).eval()
    assert layer.is_local
    assert not CramBertLayer(config, 0).is_local
    _, near = contexts(config, DENSE, hidden, None, None, None)
    with torch.no_grad():
        changed = hidden.clone()
        changed[0, 8] += torch.randn(16)  # the norm before attention would remove a constant
        moved = (layer(hidden, near) - layer(changed, near)).abs().amax(-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == [6, 7, 8, 9, 10]
    assert influence(model(local_window=4), 15).all(), "global layers pass it on"


def test_causal_rows_do_not_look_ahead():
    causal = torch.tensor([True, False, True])
    seen = influence(model(positions="rotary"), 7, causal=causal)
    assert not seen[causal, :7].any()
    assert seen[causal, 7:].all()
    assert seen[1].all()


def check_that_documents_and_padding_cut_rows(made: CramBertForMaskedLM) -> None:
    """Check that the first ten tokens of a row do not depend on a document or padding after them."""
    ids = training_batch()["input_ids"]
    documents = torch.zeros_like(ids)
    documents[:, 10:] = 1
    assert torch.allclose(logits(made, ids, document_ids=documents)[:, :10], logits(made, ids[:, :10]), atol=1e-5)
    mask = torch.ones_like(ids)
    mask[:, 10:] = 0
    assert torch.allclose(logits(made, ids, attention_mask=mask)[:, :10], logits(made, ids[:, :10]), atol=1e-5)


def test_documents_windows_and_padding_combine():
    check_that_documents_and_padding_cut_rows(model(local_window=8, positions="alibi"))


def test_no_query_is_without_a_key():
    hidden, padded = torch.zeros(1, 16, 32), torch.tensor([[1] * 4 + [0] * 12])
    for causal in (None, torch.tensor([True])):
        _, made = contexts(tiny_config(local_window=4, global_every=2), DENSE, hidden, padded, None, causal)
        assert made.mask.any(dim=-1).all()
        assert made.mask[0, 0, 15].nonzero().flatten().tolist() == [15]
        assert not made.mask[0, 0, :4, 4:].any(), "tokens do not see padding"


@pytest.mark.parametrize(("autocast", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_biases_have_the_type_of_queries(autocast: bool, dtype: torch.dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        made, _ = contexts(tiny_config(positions="alibi"), DENSE, torch.zeros(1, 8, 32), None, None, None)
    assert made.mask.dtype == dtype


def test_normed_queries_and_keys_have_no_scale():
    torch.manual_seed(0)
    attention = SelfAttention(tiny_config(qk_norm=True))
    hidden = torch.randn(2, 8, 16)
    with torch.no_grad():
        before = attention(hidden, EMPTY)
        attention.qkv.weight[:32] *= 100.0
        assert torch.allclose(attention(hidden, EMPTY), before, atol=1e-4)


def test_a_gate_multiplies_the_attention_output():
    gated, plain = SelfAttention(tiny_config(attention_gate=True)), SelfAttention(tiny_config())
    plain.load_state_dict(gated.state_dict(), strict=False)
    with torch.no_grad():
        gated.out.weight.copy_(torch.eye(16))
        plain.out.weight.copy_(torch.eye(16))
        hidden = torch.randn(2, 8, 16)
        gate = nn.functional.gelu(hidden @ gated.gate.weight.T)
        assert torch.allclose(gated(hidden, EMPTY), plain(hidden, EMPTY) * gate, atol=1e-6)


def test_norm_positions():
    hidden = torch.randn(2, 8, 16) * 5.0
    post = CramBertLayer(tiny_config(norm_position="post"), 0)
    assert post(hidden, EMPTY).var(-1, unbiased=False).sub(1).abs().max() < 1e-3
    sandwich = CramBertLayer(tiny_config(norm_position="sandwich"), 0)
    nn.init.zeros_(sandwich.attention_out_norm.weight)
    nn.init.zeros_(sandwich.feedforward_out_norm.weight)
    assert torch.equal(sandwich(hidden, EMPTY), hidden)
    assert isinstance(CramBertLayer(tiny_config(first_norm=False), 0).attention_norm, nn.Identity)
    assert isinstance(CramBertLayer(tiny_config(first_norm=False), 1).attention_norm, nn.LayerNorm)
    assert isinstance(tiny_model(norm_position="post").encoder.final_norm, nn.Identity)
    assert isinstance(tiny_model(norm="rmsnorm").encoder.final_norm, nn.RMSNorm)
    assert tiny_model(norm_bias=False).encoder.final_norm.bias is None


@pytest.mark.parametrize(
    ("name", "of_x"),
    [
        ("gelu", lambda x: nn.functional.gelu(x)),
        ("relu2", lambda x: x.clamp(min=0) ** 2),
        ("geglu", lambda x: nn.functional.gelu(x[..., 16:]) * x[..., :16]),
        ("swiglu", lambda x: x[..., 16:] * torch.sigmoid(x[..., 16:]) * x[..., :16]),
    ],
)
def test_feedforward_blocks_by_hand(name, of_x):
    block = FEEDFORWARDS[name](tiny_config())
    hidden = torch.randn(2, 3, 16)
    with torch.no_grad():
        assert torch.allclose(block(hidden), of_x(hidden @ block.w_in.weight.T) @ block.w_out.weight.T, atol=1e-6)


def test_a_feedforward_block_in_every_second_layer():
    layers = tiny_model(num_hidden_layers=4, ffn_every=2).encoder.layers
    assert [layer.has_feedforward for layer in layers] == [False, True, False, True]


def test_output_init():
    hidden = torch.randn(2, 8, 16)
    assert torch.equal(tiny_model(output_init="zero").encoder.layers[0](hidden, EMPTY), hidden)
    plain, scaled = (tiny_model(output_init=kind, num_hidden_layers=8) for kind in ("normal", "scaled"))
    for name in ("attention.out", "feedforward.w_out"):
        ratio = (
            scaled.encoder.layers[3].get_submodule(name).weight.std()
            / plain.encoder.layers[3].get_submodule(name).weight.std()
        )
        assert ratio.item() == pytest.approx(1 / 4, rel=0.2)
    assert scaled.encoder.layers[3].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_value_embeddings_reach_the_first_and_the_last_layers():
    made = model(value_embeddings=2)
    assert [layer.value_embedding for layer in made.encoder.layers] == [0, 1, None, None, 1, 0]
    attention = SelfAttention(tiny_config(value_embeddings=1), has_value_embedding=True)
    hidden, embedded = torch.randn(2, 8, 16), torch.randn(2, 8, 16)
    plain = SelfAttention(tiny_config())
    plain.load_state_dict(attention.state_dict(), strict=False)
    with torch.no_grad():
        attention.value_shares.copy_(torch.tensor([1.0, 0.0]))
        assert torch.equal(attention(hidden, EMPTY, embedded), plain(hidden, EMPTY))
        attention.value_shares.copy_(torch.tensor([0.0, 1.0]))
        plain.qkv.weight[32:] = 0.0
        value = attention(hidden, EMPTY, embedded)
        assert not torch.allclose(value, attention(hidden, EMPTY, 2 * embedded))
        assert torch.allclose(2 * value, attention(hidden, EMPTY, 2 * embedded), atol=1e-5), "attention is unchanged"


def test_stacks_that_start_as_a_plain_one():
    plain = tiny_model(num_hidden_layers=6).eval()
    for changes in ({"stack": "input-skip"}, {"stack": "token-dropping"}, {"stack": "recurrent", "repeats": 1}):
        other = tiny_model(num_hidden_layers=6, **changes).eval()
        other.load_state_dict(plain.state_dict(), strict=False)
        assert torch.equal(logits(other), logits(plain)), changes


def test_a_recurrent_stack_repeats_its_layers():
    once, twice = tiny_model().eval(), tiny_model(stack="recurrent", repeats=2).eval()
    twice.load_state_dict(once.state_dict())
    hidden = once.encoder.embeddings(training_batch()["input_ids"])
    with torch.no_grad():
        for _ in range(2):
            for layer in once.encoder.layers:
                hidden = layer(hidden, EMPTY)
        expected = once.head(once.encoder.final_norm(hidden))[1]
    assert torch.allclose(logits(twice), expected, atol=1e-6)


def test_weights_of_an_elc_stack_choose_among_outputs():
    made = model(stack="elc")
    with torch.no_grad():
        made.encoder.stack.weights.zero_()
        made.encoder.stack.weights[-7] = 1e4  # the encoder's output is the embedding
        hidden = made.encoder.embeddings(training_batch()["input_ids"])
        expected = made.head(made.encoder.final_norm(hidden))[1]
    assert torch.allclose(logits(made), expected, atol=1e-5)


def lengths_seen(made: CramBertForMaskedLM, length: int) -> list[int]:
    seen: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[1]))
        for layer in made.encoder.layers
    ]
    made(torch.randint(40, (2, length)))
    for hook in hooks:
        hook.remove()
    return seen


def test_a_funnel_shortens_rows_in_the_middle():
    funnel = tiny_model(num_hidden_layers=8, stack="funnel", max_position_embeddings=32)
    assert lengths_seen(funnel, 16) == [16, 16, 8, 8, 4, 4, 16, 16]
    assert funnel(torch.randint(40, (2, 15))).logits.shape == (2, 15, 40)
    dropping = tiny_model(num_hidden_layers=6, stack="token-dropping", dropped_tokens=0.25, positions="rotary")
    assert lengths_seen(dropping.train(), 16) == [16, 16, 16, 12, 12, 16]
    assert lengths_seen(dropping.eval(), 16) == [16] * 6
    for made in (funnel, dropping):
        assert [tokens for _, tokens in made.encoder.stack.passes(16)] == lengths_seen(made.train(), 16)


def test_dropped_tokens_keep_their_place_and_positions():
    made = model(stack="token-dropping", dropped_tokens=0.5, positions="rotary", local_window=6).train()
    torch.manual_seed(3)
    ids = training_batch()["input_ids"]
    documents = torch.zeros_like(ids)
    documents[:, 8:] = 1
    torch.manual_seed(3)
    together = made(ids, document_ids=documents).logits
    # The remaining tokens of different documents do not see each other.
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 40
    torch.manual_seed(3)
    other = made(changed, document_ids=documents).logits
    assert torch.equal(together[:, 8:], other[:, 8:])
    assert not torch.equal(together[:, :8], other[:, :8])


def test_logits_are_capped():
    ordinary, capped = model(), model(logit_softcap=0.5)
    expected = 0.5 * torch.tanh(logits(ordinary) / 0.5)
    assert torch.allclose(logits(capped), expected, atol=1e-6)
    assert math.isclose(logits(model(logit_scale=0.5)).sum().item(), 0.5 * logits(ordinary).sum().item(), rel_tol=1e-4)


def test_shifted_models_predict_a_token_at_the_position_before_it():
    plain, shifted = model(), model()
    shifted.config.shift = True
    assert torch.equal(logits(shifted)[:, 1:], logits(plain)[:, :-1])
    positions = torch.tensor([[3, 7]] * 3)
    assert torch.equal(logits(shifted, masked_positions=positions), logits(plain, masked_positions=positions))


def test_a_wider_model_has_the_initial_scale_of_its_base_width():
    settings = ModelConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    tokens = {"pad": 0, "cls": 2, "sep": 3}
    torch.manual_seed(0)
    plain = build_model(settings, 40, tokens)
    torch.manual_seed(0)
    wide = build_model(settings.model_copy(update={"mup_base_width": 16}), 40, tokens)
    for name, weight in wide.state_dict().items():
        ratio = 0.5 if "attention.qkv" in name or "attention.out" in name or "feedforward.w" in name else 1.0
        assert torch.equal(weight, ratio * plain.state_dict()[name]), name
    hidden = torch.randn(2, 64)
    assert torch.allclose(wide.head.logits(hidden), plain.head.logits(hidden) / 4)


def test_an_untied_decoder_has_separate_weights():
    tied, untied = tiny_model(), tiny_model(tie_word_embeddings=False)
    assert tied.head.decoder.weight is tied.encoder.embeddings.word_embeddings.weight
    assert untied.num_parameters() == tied.num_parameters() + 40 * 16
