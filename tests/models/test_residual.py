"""The dtype of the residual stream in training."""

from __future__ import annotations

import pytest
import torch

from cram_composer.config.schema.model import ModelConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.factory import build_model
from cram_composer.models.training_model import MaskedLMTrainingModel
from tests.models.tiny_models import SPECIAL, training_batch
from tests.tiny_runs import TinyRuns, losses, same, saved

SIZES = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}
LOW = ["model.residual_in_fp32=false", "train.precision=bf16"]


def build(residual_in_fp32: bool, autocast_dtype: torch.dtype | None, **settings) -> MaskedLMTrainingModel:
    torch.manual_seed(0)
    settings = SIZES | {"max_position_embeddings": 24} | settings
    model = build_model(ModelConfig(residual_in_fp32=residual_in_fp32, **settings), 40, SPECIAL)
    return MaskedLMTrainingModel(model, autocast_dtype).train()


def streams(model: MaskedLMTrainingModel) -> tuple[set[torch.dtype], torch.Tensor]:
    """Run a forward pass; return the dtypes of the layers' inputs and outputs, and the loss."""
    assert isinstance(model.model, CramBertForMaskedLM)
    seen = set()
    for layer in model.model.encoder.layers:
        layer.register_forward_hook(lambda layer, given, result: seen.update((given[0].dtype, result.dtype)))
    return seen, model(training_batch()).loss


@pytest.mark.parametrize("norm_position", ["pre", "post", "sandwich"])
@pytest.mark.parametrize("stack", ["plain", "input-skip", "elc", "recurrent", "funnel", "token-dropping"])
def test_the_residual_stream_is_in_bf16_in_training_with_bf16_only(norm_position: str, stack: str) -> None:
    settings = {"norm_position": norm_position, "stack": stack}
    low = build(False, torch.bfloat16, **settings)
    seen, loss = streams(low)
    assert seen == {torch.bfloat16}
    loss.backward()
    assert {parameter.grad.dtype for parameter in low.parameters() if parameter.grad is not None} == {torch.float32}
    assert streams(build(True, torch.bfloat16, **settings))[0] == {torch.float32}
    assert streams(build(False, None, **settings))[0] == {torch.float32}  # no autocast to follow
    assert streams(build(False, torch.float16, **settings))[0] == {torch.float32}
    assert streams(low.eval())[0] == {torch.float32}


def test_the_loss_is_close_to_that_with_an_fp32_residual_stream() -> None:
    exact, high, low = (
        streams(build(*arguments))[1] for arguments in ((True, None), (True, torch.bfloat16), (False, torch.bfloat16))
    )
    assert not torch.equal(high, low)
    torch.testing.assert_close(low, exact, rtol=0.01, atol=0)
    torch.testing.assert_close(high, exact, rtol=0.01, atol=0)


def test_exports_do_not_contain_the_setting() -> None:
    config = build(False, torch.bfloat16).model.config.to_dict()
    assert not [key for key in config if "residual" in key]


def test_a_resumed_run_repeats_itself_with_fp32_weights(tiny_run: TinyRuns) -> None:
    whole = tiny_run("low-residual", *LOW)
    resumed = tiny_run.resume(whole, 5, *LOW)
    assert losses(resumed) == losses(whole)
    assert same(saved(resumed), saved(whole))
    assert {weight.dtype for weight in saved(whole)["model"].values()} == {torch.float32}
