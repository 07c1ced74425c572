"""Layer freezing: number of frozen layers, missing gradients, and saved activations."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from composer.core import Event
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoConfig, AutoModelForMaskedLM

from cram_composer.algorithms.layer_freezing import LayerFreezing
from cram_composer.budget.budget import Budget, Limits
from cram_composer.config.schema.algorithms import LayerFreezingConfig
from cram_composer.models.training_model import MaskedLMTrainingModel
from tests.models.tiny_models import tiny_model, training_batch
from tests.tiny_runs import TinyRuns, losses, same, saved

LAYERS = 4


class Log:
    """A logger that collects its metrics."""

    def __init__(self) -> None:
        self.metrics: list[dict] = []

    def log_metrics(self, metrics: dict) -> None:
        self.metrics.append(metrics)


def frozen(progress: float, compile: str = "off", config: LayerFreezingConfig | None = None, **changes):
    """Build a training model of four layers at `progress`, with its algorithm."""
    budget = Budget(Limits(seconds=1.0))
    model = MaskedLMTrainingModel(tiny_model(num_hidden_layers=LAYERS, **changes), compile=compile)
    algorithm = LayerFreezing(config or LayerFreezingConfig(), budget)
    state = SimpleNamespace(model=model)
    algorithm.apply(Event.INIT, state, None)
    advance(algorithm, budget, state, progress)
    return model, algorithm, budget, state


def advance(algorithm, budget, state, progress: float) -> list[dict]:
    log = Log()
    budget.advance(progress, 0, 0)
    assert algorithm.match(Event.BATCH_START, state)
    algorithm.apply(Event.BATCH_START, state, log)
    return log.metrics


def backward(model: MaskedLMTrainingModel) -> set[str]:
    """Run a backward pass; return the names of the parameters with a gradient."""
    batch = training_batch()
    model.zero_grad()
    model(batch).loss.backward()
    return {name.removeprefix("model.encoder.") for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("start", "level", "expected"),
    [(0.5, 1.0, [0, 0, 0, 1, 3, 4]), (0.0, 0.5, [0, 0, 1, 1, 1, 2]), (1.0, 1.0, [0] * 6), (0.0, 0.0, [0] * 6)],
)
def test_the_number_of_frozen_layers_grows_linearly(start: float, level: float, expected: list[int]):
    _, algorithm, budget, state = frozen(0.0, config=LayerFreezingConfig(freeze_start=start, freeze_level=level))
    found, logged = [], []
    for progress in (0.0, 0.3, 0.5, 0.7, 0.9, 1.0):
        logged += advance(algorithm, budget, state, progress)
        found.append(algorithm._frozen)
    assert found == expected
    assert [entry["layer_freezing/layers_frozen"] for entry in logged] == sorted(set(expected) - {0})


def test_frozen_layers_and_all_below_get_no_gradient():
    everything = backward(frozen(0.0)[0])
    some = backward(frozen(0.75)[0])
    lost = everything - some
    assert {name.split(".")[1] for name in lost if name.startswith("layers.")} == {"0", "1"}
    rest = {name for name in lost if not name.startswith("layers.")}
    assert rest and all(name.startswith("embeddings.") for name in rest)
    assert "embeddings.word_embeddings.weight" in some  # the decoder is tied to it
    untied = frozen(0.75, tie_word_embeddings=False)[0]
    assert "embeddings.word_embeddings.weight" not in backward(untied)


def test_forward_and_gradients_of_trained_layers_do_not_change():
    plain, some = frozen(0.0)[0], frozen(0.75)[0]
    batch = training_batch()
    outputs = [model(batch) for model in (plain, some)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    for output in outputs:
        output.loss.backward()
    gradients = [dict(model.model.encoder.layers[2].named_parameters()) for model in (plain, some)]
    for name, p in gradients[0].items():
        assert torch.equal(p.grad, gradients[1][name].grad)


def test_frozen_layers_keep_no_activations():
    def kept(model: MaskedLMTrainingModel) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(training_batch())
        return sum(sizes)

    all_layers, half, one = (kept(frozen(progress)[0]) for progress in (0.0, 0.75, 0.875))
    assert half - one == pytest.approx((all_layers - half) / 2, rel=0.1)


def test_the_optimizer_changes_no_frozen_weight():
    model, algorithm, budget, state = frozen(0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    backward(model)
    optimizer.step()  # builds up momentum
    advance(algorithm, budget, state, 0.75)
    before = copy.deepcopy(model.state_dict())
    names = backward(model)
    optimizer.step()
    for name, tensor in model.state_dict().items():
        trained = name.removeprefix("model.encoder.") in names or name == "model.head.decoder.weight"
        assert torch.equal(tensor, before[name]) != trained, name


def test_evaluation_and_copies_of_the_model_are_unchanged():
    model = frozen(0.75)[0]
    plain = tiny_model(num_hidden_layers=LAYERS).eval()
    copied = copy.deepcopy(model.model).eval()
    ids = training_batch()["input_ids"]
    for one in (model.model.eval(), copied):
        logits = one(input_ids=ids).logits
        assert torch.equal(logits, plain(input_ids=ids).logits) and logits.requires_grad
    assert model.model.state_dict().keys() == plain.state_dict().keys()


def test_freezing_compiled_layers_adds_few_graphs(monkeypatch: pytest.MonkeyPatch):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled(self, backend=counter, **options))
    torch._dynamo.reset()
    model, algorithm, budget, state = frozen(0.0, compile="regional")
    graphs = []
    for progress in (0.0, 0.3, 0.75, 0.9, 0.95):
        advance(algorithm, budget, state, progress)
        names = backward(model)
        graphs.append(counter.frame_count)
        eager = frozen(progress)[0]
        assert names == backward(eager)
        for p, q in zip(model.parameters(), eager.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad)
    torch._dynamo.reset()
    # Layers and head, then layers without autograd, and the first trained layer, whose input needs no gradient.
    assert graphs[0] == graphs[1] and graphs[2:] == [graphs[0] + 2] * 3


def test_a_run_freezes_layer_by_layer(tiny_run: TinyRuns, plain_run):
    freezing = ["algorithms.layer_freezing={freeze_start: 0.3, freeze_level: 0.9}", "model.num_hidden_layers=2"]
    run = tiny_run("frozen", *freezing)

    def layer(step: int) -> dict:
        return {name: p for name, p in saved(run, step)["model"].items() if ".layers.0." in name}

    # One of two layers, floor(2 * 0.9 (0.7 - 0.3) / 0.7), is frozen from the eighth step on, at progress 0.7.
    assert losses(run)[:8] == losses(plain_run)[:8] and losses(run)[8] != losses(plain_run)[8]
    assert not same(layer(6), layer(7)) and same(layer(7), layer(10))


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_models_of_transformers_freeze_too(name: str):
    sizes = {"hidden_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "vocab_size": 40}
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    extra = {"reference_compile": False} if name == "modernbert" else {}
    network = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(name, intermediate_size=32, **sizes, **special, **extra)
    )
    model = MaskedLMTrainingModel(network)
    budget, state = Budget(Limits(seconds=1.0)), SimpleNamespace(model=model)
    algorithm = LayerFreezing(LayerFreezingConfig(), budget)
    algorithm.apply(Event.INIT, state, None)
    everything = backward(model)
    advance(algorithm, budget, state, 0.75)
    lost = {name.split(".layer")[1] for name in everything - backward(model) if ".layer" in name}
    assert {name.split(".")[1] for name in lost} == {"0", "1"}
