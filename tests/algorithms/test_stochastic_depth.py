"""Stochastic depth: skipped layers, scaled contributions, and evaluation with all layers."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from composer.core import Event
from torch._dynamo.testing import CompileCounterWithBackend

from cram_composer.algorithms.layer_freezing import LayerFreezing
from cram_composer.algorithms.norms.low_precision_layernorm import lower_norms
from cram_composer.algorithms.stochastic_depth import StochasticLayers
from cram_composer.budget.budget import Budget, Limits
from cram_composer.config.schema.algorithms import LayerFreezingConfig, StochasticDepthConfig
from cram_composer.models.export import plain_copy
from cram_composer.models.training_model import MaskedLMTrainingModel
from tests.models.tiny_models import tiny_model, training_batch

LAYERS = 4


class Stack:
    """A training model of four layers with stochastic depth."""

    def __init__(self, compile: str = "off", seed: int = 17, network=None, **config) -> None:
        self.budget = Budget(Limits(seconds=1.0))
        network = network or tiny_model(num_hidden_layers=LAYERS)
        self.model = MaskedLMTrainingModel(network, compile=compile)
        self.state = SimpleNamespace(model=self.model, timestamp=SimpleNamespace(batch=0))
        self.logged: list[dict] = []
        self.logger = SimpleNamespace(log_metrics=self.logged.append)
        self.algorithm = StochasticLayers(StochasticDepthConfig(**config), self.budget, seed)
        self.algorithm.apply(Event.INIT, self.state, self.logger)

    def begin(self, step: int, progress: float = 0.5) -> list[bool]:
        """Begin a step; return for each layer whether it is skipped."""
        self.budget.advance(progress, 0, 0)
        self.state.timestamp.batch = step
        assert self.algorithm.match(Event.BATCH_START, self.state)
        self.algorithm.apply(Event.BATCH_START, self.state, self.logger)
        return list(self.algorithm._skipped)

    def layers(self) -> list[torch.nn.Module]:
        return list(self.model.model.encoder.layers)


def in_and_out(stack: Stack) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Run a training forward; return the input and output of each layer."""
    found, embedded = [], stack.model.model.encoder.embeddings.register_forward_hook(lambda m, a, out: out.clone())
    for layer in stack.layers():
        layer.wrappers.append(lambda call, x, *rest: found.append((x, call(x, *rest))) or found[-1][1])
    stack.model(training_batch())
    embedded.remove()
    for layer in stack.layers():
        layer.wrappers.pop()
    return found


@pytest.mark.parametrize(("distribution", "shares"), [("linear", [0.1, 0.2, 0.3, 0.4]), ("uniform", [0.4] * LAYERS)])
def test_layers_are_skipped_at_their_rate(distribution: str, shares: list[float]):
    stack = Stack(drop_rate=0.4, drop_distribution=distribution)
    steps = 4000
    counts = torch.tensor([stack.begin(step) for step in range(1, steps + 1)]).float().mean(0)
    torch.testing.assert_close(counts, torch.tensor(shares), atol=0.03, rtol=0)
    assert stack.logged[-1] == {"stochastic_depth/drop_rate": 0.4}


def test_the_rates_grow_over_the_warmup_and_the_first_step_is_whole():
    stack = Stack(drop_rate=0.8, drop_distribution="uniform", drop_warmup=0.5)
    for progress, rate in ((0.0, 0.0), (0.25, 0.4), (0.5, 0.8), (1.0, 0.8)):
        stack.begin(3, progress)
        assert stack.algorithm._rates == pytest.approx([rate] * LAYERS)
    certain = Stack(drop_rate=0.99, drop_distribution="uniform")
    assert certain.begin(0) == [False] * LAYERS and any(certain.begin(1))


def test_skipped_layers_depend_only_on_seed_and_step():
    one, other, third = Stack(drop_rate=0.5), Stack(drop_rate=0.5), Stack(drop_rate=0.5, seed=18)
    for step in range(20):
        one.begin(step)
    resumed = [other.begin(step) for step in range(20, 40)]
    assert resumed == [one.begin(step) for step in range(20, 40)] != [third.begin(step) for step in range(20, 40)]


def test_a_skipped_layer_is_not_computed_and_gets_no_gradient():
    stack = Stack(drop_rate=0.9, drop_distribution="uniform")
    skipped = next(drawn for drawn in map(stack.begin, range(1, 50)) if 0 < sum(drawn) < LAYERS)
    computed: list[int] = []
    for index, layer in enumerate(stack.layers()):
        layer.attention.register_forward_hook(lambda m, a, o, index=index: computed.append(index))
    batch = training_batch()
    stack.model(batch).loss.backward()
    assert computed == [index for index in range(LAYERS) if not skipped[index]]
    for index, layer in enumerate(stack.layers()):
        assert all((p.grad is None) == skipped[index] for p in layer.parameters())


def test_contributions_are_scaled_to_their_expectation():
    stack = Stack(drop_rate=0.5)
    stack.begin(1)
    stack.algorithm._skipped = [False, False, False, True]
    found = in_and_out(stack)
    for (given, result), layer, rate in zip(found, stack.layers(), (0.125, 0.25, 0.375), strict=False):
        bare = copy.deepcopy(layer).eval()
        (context, *_) = contexts(stack)
        torch.testing.assert_close(result, given + (bare(given, context) - given) / (1 - rate))
    assert found[-1][0] is found[-1][1]


def contexts(stack: Stack) -> list:
    """Return the contexts that the layers receive."""
    seen: list = []
    layer = stack.layers()[0]
    layer.wrappers.append(lambda call, x, *rest: seen.append(rest[0]) or call(x, *rest))
    stack.model(training_batch())
    layer.wrappers.pop()
    return seen


def test_samples_are_skipped_row_by_row():
    stack = Stack(stochastic_method="sample", drop_rate=0.5, drop_distribution="uniform")
    assert stack.begin(1) == [False] * LAYERS
    torch.manual_seed(0)
    dropped = 0
    for _ in range(200):
        for given, result in in_and_out(stack):
            rows = (given == result).flatten(1).all(1)
            dropped += int(rows.sum())
            assert not (given[~rows] == result[~rows]).flatten(1).all(1).any()
    assert dropped / (200 * LAYERS * 3) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("method", ["block", "sample"])
def test_without_a_rate_nothing_changes(method: str):
    stack = Stack(stochastic_method=method, drop_rate=0.0)
    stack.begin(1)
    batch = training_batch()
    assert torch.equal(
        stack.model(batch).logits, MaskedLMTrainingModel(tiny_model(num_hidden_layers=LAYERS))(batch).logits
    )


def test_evaluation_copies_and_exports_have_all_layers():
    stack = Stack(drop_rate=0.99, drop_distribution="uniform")
    assert any(stack.begin(1))
    plain = tiny_model(num_hidden_layers=LAYERS).eval()
    ids = training_batch()["input_ids"]
    network = stack.model.model
    assert network.state_dict().keys() == plain.state_dict().keys()
    for one in (copy.deepcopy(network).eval(), plain_copy(network), network.eval()):
        assert torch.equal(one(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_compiled_layers_are_not_compiled_again(monkeypatch: pytest.MonkeyPatch):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled(self, backend=counter, **options))
    torch._dynamo.reset()
    stack, eager = (Stack(compile=mode, drop_rate=0.5) for mode in ("regional", "off"))
    batch, graphs, drawn = training_batch(), [], set()
    for step in range(8):
        drawn.add(tuple(stack.begin(step)))
        eager.begin(step)
        loss = stack.model(batch).loss
        loss.backward()
        torch.testing.assert_close(loss, eager.model(batch).loss)
        graphs.append(counter.frame_count)
    torch._dynamo.reset()
    assert len(drawn) > 3
    assert graphs == [2] * 8  # one for all layers, one for the head


def test_it_combines_with_layer_freezing():
    stack = Stack(drop_rate=0.5, drop_distribution="uniform")
    freezing = LayerFreezing(LayerFreezingConfig(freeze_start=0.0), stack.budget)
    freezing.apply(Event.INIT, stack.state, stack.logger)
    stack.begin(1, 0.5)
    freezing.apply(Event.BATCH_START, stack.state, stack.logger)
    stack.algorithm._skipped = [True, False, True, False]
    batch = training_batch()
    stack.model(batch).loss.backward()
    got = [any(p.grad is not None for p in layer.parameters()) for layer in stack.layers()]
    assert got == [False, False, False, True]


def test_a_copy_of_the_model_has_separate_weights_and_layers():
    stack = Stack(drop_rate=0.0)
    stack.begin(1)
    network = stack.model.model
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
    ids = training_batch()["input_ids"]
    assert not copied(input_ids=ids).logits.any() and network(input_ids=ids).logits.any()
    for layer in copied.eval().encoder.layers:
        assert not layer.layer.training and layer.layer.attention is layer.attention
    for layer in network.encoder.layers:
        assert layer.layer.training


def test_submodules_replaced_later_are_used():
    stack = Stack(drop_rate=0.0)
    stack.begin(1)
    assert lower_norms(stack.model)
    ran: list[int] = []
    for index, layer in enumerate(stack.layers()):
        layer.attention_norm.register_forward_hook(lambda m, a, o, index=index: ran.append(index))
    stack.model(training_batch())
    assert ran == list(range(LAYERS))
