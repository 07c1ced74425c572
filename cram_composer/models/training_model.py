"""The ComposerModel that trains any Hugging Face masked LM on batches of masked positions."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from composer.models import ComposerModel
from torch._dynamo.exc import TorchDynamoException
from torchmetrics import Metric
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from cram_composer.config.schema.model import ModelConfig
from cram_composer.data.masking import IGNORED
from cram_composer.models.attention_kernels import choose_attention
from cram_composer.models.compilation import compile_model, uncompile
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.losses import choose_loss, cross_entropy_and_logits
from cram_composer.models.metrics import DETECTION, Detection, MaskedAccuracy, MaskedLoss
from cram_composer.models.replaced_tokens import ReplacedTokenDetector, ReplacedTokenOutput

log = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]


class MaskedLMTrainingModel(ComposerModel):
    """Masked-language modelling of `model` on batches of `input_ids` [B, L], `masked_positions` and `labels` [B, K].

    A batch may have `attention_mask` [B, L] too and, for CramBERT, `document_ids` [B, L].

    Args:
        model: a masked LM. If its forward takes `masked_positions` (CramBERT), it predicts only those positions; any
            other model gets dense labels [B, L] and decodes every position.
        autocast_dtype: dtype for CPU autocast around the forward, because Composer rejects `amp_bf16` on a CPU; None
            leaves precision to Composer.
        compile: "off", "regional" or "full", see `compile_model`. Compilation happens in the first training forward
            and for each new shape. If it fails, the model warns, returns to eager mode and repeats the batch.
            Evaluation runs eagerly: compiling a second graph would cost more of the budget than it saves.

    Attributes:
        compile_state: the compile mode in effect, or "off (failed: ...)".
        loss_kernel: description of the kernel of the training loss.
        attention: description of the attention kernel used in training.
        precompiles: compile the backward before the trainer runs it; False if weights are sharded.
        wait_for_ranks: barrier with a long timeout, called on all ranks after they compiled for new shapes.
    """

    def __init__(self, model: PreTrainedModel, autocast_dtype: torch.dtype | None = None, compile: str = "off") -> None:
        super().__init__()
        self.model = model
        self.autocast_dtype = autocast_dtype
        # Reused in all steps: constructing one makes torch look for a package on disk.
        self._autocast = torch.autocast("cpu", autocast_dtype) if autocast_dtype is not None else nullcontext()
        self.predicts_positions = "masked_positions" in inspect.signature(model.forward).parameters
        self.compiled_regions = compile_model(model, compile)
        self.compile_state = compile
        self.loss_kernel = "torch, full"
        self.attention = f"transformers {model.config._attn_implementation}"
        self.precompiles = True
        self._precompiled: set[tuple[torch.Size, ...]] = set()
        self.wait_for_ranks: Callable[[], None] = lambda: None

    def forward(self, batch: Batch) -> MaskedLMOutput:
        """Return the loss (mean nats over labels != -100) and logits, [B, K, V] of CramBERT, else [B, L, V]."""
        try:
            if self.precompiles and torch.is_grad_enabled():
                self._precompile(batch)
            return self._forward(batch)
        except TorchDynamoException as error:
            if not self.compiled_regions:
                raise
            uncompile(self.compiled_regions)
            self.compiled_regions = []
            reason = _first_line(error)
            self.compile_state = f"off (failed: {reason})"
            log.warning("torch.compile failed and is off for the rest of this run: %s", reason)
        return self._forward(batch)

    def use_loss(self, kernel: str, device: str) -> None:
        """Set the kernel (one of LOSSES) of CramBERT's training loss on `device` ("cpu" or "gpu")."""
        if isinstance(self.model, CramBertForMaskedLM):
            self.model.head.loss, self.loss_kernel = choose_loss(kernel, device)

    def keep_logits(self) -> None:
        """Return logits from the forward in training too; the loss is that of the kernel "full"."""
        if isinstance(self.model, CramBertForMaskedLM):
            self.model.head.loss = cross_entropy_and_logits

    def use_attention(self, kernel: str, device: str, precision: str) -> None:
        """Set CramBERT's attention kernel in training; arguments as in `choose_attention`."""
        if isinstance(self.model, CramBertForMaskedLM):
            self.model.encoder.attention_kernel, self.attention = choose_attention(kernel, device, precision)

    def use_kernels(self, config: ModelConfig, device: str, precision: str) -> None:
        """Set the kernels that `config` names; see `use_loss` and `use_attention`."""
        self.use_loss(config.loss_kernel, device)
        self.use_attention(config.attention_kernel, device, precision)

    def _precompile(self, batch: Batch) -> None:
        """Compile for new shapes of a batch, then wait for the other ranks, whose shapes are the same.

        Forward and backward run once, and the result is discarded: torch compiles a backward pass when it first runs,
        which is in the trainer, where an error cannot be caught. Ranks compile for minutes, at different speeds, and
        collectives time out.
        """
        shapes = tuple(tensor.shape for tensor in batch.values())
        if shapes in self._precompiled:
            return
        self._precompiled.add(shapes)
        try:
            if self.compiled_regions:
                self._run_once(batch)
        finally:  # also without compilation or after its failure, which the other ranks do not know of
            self.wait_for_ranks()

    def _run_once(self, batch: Batch) -> None:
        device = batch["input_ids"].device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            loss = self.loss(self._forward(batch), batch)["total"]
        torch.autograd.grad(loss, [p for p in self.parameters() if p.requires_grad], allow_unused=True)

    def _forward(self, batch: Batch) -> MaskedLMOutput:
        inputs = batch if self.predicts_positions else _with_dense_labels(batch)
        with self._autocast:
            return self.model(**inputs)

    def loss(  # type: ignore[override]
        self, outputs: MaskedLMOutput, batch: Batch, *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Return the mean loss in nats over the labels as "total", the key that Composer minimizes."""
        return {"total": cast(torch.Tensor, outputs.loss)}

    def eval_forward(self, batch: Batch, outputs: MaskedLMOutput | None = None) -> MaskedLMOutput:
        """Return `outputs`, or run the forward without compilation if they are None."""
        if outputs is not None:
            return outputs
        with torch.compiler.set_stance("force_eager"):
            return self._forward(batch)

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Return the evaluation metrics "loss" (nats) and "accuracy" over masked positions; none for training."""
        return {} if is_train else {"loss": MaskedLoss(), "accuracy": MaskedAccuracy()}

    def update_metric(self, batch: Batch, outputs: MaskedLMOutput, metric: Metric) -> None:
        """Add the masked positions of one batch to a metric."""
        metric.update(self.label_logits(batch, outputs), batch["labels"])

    def label_logits(self, batch: Batch, outputs: MaskedLMOutput) -> torch.Tensor:
        """Select the logits [B, K, V] at the places of the labels."""
        logits = cast(torch.Tensor, outputs.logits)
        if self.predicts_positions:
            return logits
        return logits.gather(1, batch["masked_positions"].unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


class ReplacedTokenTrainingModel(MaskedLMTrainingModel):
    """Replaced-token detection on batches that have `draws` too, see `ReplacedTokenDetector.forward`."""

    model: ReplacedTokenDetector

    def use_loss(self, kernel: str, device: str) -> None:
        """Set the kernel of the corrective head's loss; the generator's needs all logits, which it samples from."""
        if self.model.head is not None:
            super().use_loss(kernel, device)

    def use_attention(self, kernel: str, device: str, precision: str) -> None:
        """Set the attention kernel of both encoders."""
        super().use_attention(kernel, device, precision)
        self.model.generator.encoder.attention_kernel = self.model.encoder.attention_kernel

    def loss(  # type: ignore[override]
        self, outputs: ReplacedTokenOutput, batch: Batch, *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Return the weighted sum as "total", and its parts and the share of replaced tokens detected, for the log."""
        found = cast(dict[str, torch.Tensor], outputs.detection)
        parts = {
            "generator": outputs.generator_loss,
            "corrective": outputs.corrective_loss,
            "detector": found["loss"],
            "detected": found["detected"] / found["replaced"].clamp(min=1),
        }
        return super().loss(outputs, batch) | {name: p.detach() for name, p in parts.items() if p is not None}

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Return the metrics of the masked LM, and of the detector: loss in nats and shares of tokens."""
        metrics = super().get_metrics(is_train)
        return metrics and metrics | {name: Detection(name) for name in DETECTION}

    def update_metric(self, batch: Batch, outputs: Any, metric: Metric) -> None:
        """Add one batch to a metric."""
        if isinstance(metric, Detection):
            metric.update(outputs.detection)
        else:
            super().update_metric(batch, outputs, metric)


def build_training_model(
    model: PreTrainedModel, autocast_dtype: torch.dtype | None = None, compile: str = "off"
) -> MaskedLMTrainingModel:
    """Build the ComposerModel of a network; arguments as in MaskedLMTrainingModel."""
    kind = ReplacedTokenTrainingModel if isinstance(model, ReplacedTokenDetector) else MaskedLMTrainingModel
    return kind(model, autocast_dtype, compile)


def _with_dense_labels(batch: Batch) -> Batch:
    """Replace labels [B, K] and `masked_positions` by labels [B, L], -100 where nothing is masked."""
    dense = torch.full_like(batch["input_ids"], IGNORED)
    # amax, so that an unused slot (-100) does not overwrite a label at the same position
    dense = dense.scatter_reduce(1, batch["masked_positions"], batch["labels"], "amax")
    return {name: t for name, t in batch.items() if name != "masked_positions"} | {"labels": dense}


def _first_line(error: Exception) -> str:
    cause = getattr(error, "inner_exception", None) or error
    return f"{type(cause).__name__}: {cause}".strip().splitlines()[0][:200]
