"""Log-probabilities of masked tokens by any masked LM of transformers, in batches of rows of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.fine_tune import autocast
from cram_composer.evaluation.model_source import ModelSource


class MaskedRow(NamedTuple):
    """Token ids with [MASK] for hidden tokens; predictions at `positions` are scored against `targets`."""

    input_ids: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]


class MaskedScorer:
    """A masked LM with its tokenizer on a device.

    Args:
        source: the model to load.
        seed: initialises the weights of an untrained model.
        device: device to compute on.
        precision: "fp32", "bf16" or "fp16"; log-probabilities are always computed in fp32.
        batch_tokens: tokens per batch, including padding.

    Raises:
        CramError: the model cannot be loaded, or is not a masked LM.
    """

    def __init__(self, source: ModelSource, seed: int, device: torch.device, precision: str, batch_tokens: int) -> None:
        self.tokenizer = load_mask_tokenizer(source)
        self.max_length = source.max_length(self.tokenizer)
        self.model: PreTrainedModel = source.masked_lm_source().load_masked_lm(seed).to(device)  # type: ignore[arg-type]
        self._device = device
        self._precision = precision
        self._batch_tokens = batch_tokens

    @torch.inference_mode()
    def __call__(self, rows: Sequence[MaskedRow]) -> list[list[float]]:
        """Return the log-probabilities in nats of the targets of every row; equal rows get bitwise equal values."""
        distinct = list(dict.fromkeys(rows))
        found: dict[MaskedRow, list[float]] = {}
        for batch in length_batches([len(row.input_ids) for row in distinct], self._batch_tokens):
            batch_rows = [distinct[number] for number in batch]
            scores = iter(self._score_batch(batch_rows).tolist())
            for row in batch_rows:
                found[row] = [next(scores) for _ in row.positions]
        return [found[row] for row in rows]

    def _score_batch(self, rows: Sequence[MaskedRow]) -> torch.Tensor:
        """Return fp32 [N], the targets of all rows concatenated."""
        pad = self.tokenizer.pad_token_id or 0
        ids = pad_sequence([torch.tensor(row.input_ids) for row in rows], batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(row.input_ids) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        numbers = [number for number, row in enumerate(rows) for _ in row.positions]
        positions = torch.tensor([numbers, [place for row in rows for place in row.positions]], device=self._device)
        targets = torch.tensor([target for row in rows for target in row.targets], device=self._device)
        with autocast(self._device, self._precision):
            logits = logits_at(self.model, ids.to(self._device), mask.to(self._device), positions)
        return logits.float().log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1).cpu()


def load_mask_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer. Raises CramError if it has no [MASK] or no character offsets."""
    tokenizer = source.load_tokenizer()
    if tokenizer.mask_token_id is None:
        raise CramError(f"{source.name}: its tokenizer has no [MASK] token, so it is not a masked language model")
    if not tokenizer.is_fast:
        raise CramError(f"{source.name}: scoring needs a fast tokenizer (tokenizer.json), which it does not have")
    return tokenizer


def length_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield row numbers by batch, longest rows first: at most `tokens` with padding, but at least one row."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        count = max(1, tokens // max(1, lengths[order[start]]))
        yield order[start : start + count]
        start += count


def logits_at(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Return logits [N, V] at `positions` int64 [2, N] (rows and columns); `input_ids`, `attention_mask` are [B, L].

    The decoder takes most of the work of a small model and most of the memory of any. If the model has a decoder to
    hook, it only sees the hidden states at these positions; otherwise all logits are computed and most are discarded.
    """
    rows, columns = positions
    with _decoder_inputs(model, lambda hidden: _select_hidden(hidden, input_ids, rows, columns)):
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    return logits if logits.ndim == 2 else logits[rows, columns]


def _select_hidden(
    hidden: torch.Tensor, input_ids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    return hidden[rows, columns] if hidden.shape[:-1] == input_ids.shape else hidden


@contextmanager
def _decoder_inputs(model: PreTrainedModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    decoder: Any = model.get_output_embeddings()
    if not isinstance(decoder, nn.Linear):
        yield
        return
    hook = decoder.register_forward_pre_hook(lambda module, inputs: (change(inputs[0]),))
    try:
        yield
    finally:
        hook.remove()
