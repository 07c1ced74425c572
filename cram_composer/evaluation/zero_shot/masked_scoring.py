"""Log-probabilities of masked tokens by any masked LM of transformers, in batches of rows of like length."""

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
from cram_composer.evaluation.pretrained import Pretrained


class MaskedRow(NamedTuple):
    """Token ids in which [MASK] stands where something is hidden; `positions` are predicted, to be `targets`."""

    input_ids: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]


class Scorer:
    """A masked LM with its tokenizer on a device.

    Args:
        pretrained: what to load.
        seed: of the weights of one that is untrained.
        device: to compute on.
        precision: "fp32", "bf16" or "fp16"; log-probabilities are always taken in fp32.
        batch_tokens: of a batch, padding included.

    Raises:
        CramError: it cannot be loaded, or is no masked LM.
    """

    def __init__(
        self, pretrained: Pretrained, seed: int, device: torch.device, precision: str, batch_tokens: int
    ) -> None:
        self.tokenizer = mask_tokenizer(pretrained)
        self.max_length = pretrained.max_length(self.tokenizer)
        self.model: PreTrainedModel = pretrained.masked_lm(seed).to(device)  # type: ignore[arg-type]
        self._device = device
        self._precision = precision
        self._batch_tokens = batch_tokens

    @torch.inference_mode()
    def __call__(self, rows: Sequence[MaskedRow]) -> list[list[float]]:
        """Of every row, the log-probabilities in nats of its targets. Equal rows have equal ones to the last bit."""
        distinct = list(dict.fromkeys(rows))
        found: dict[MaskedRow, list[float]] = {}
        for batch in batches([len(row.input_ids) for row in distinct], self._batch_tokens):
            of_batch = [distinct[number] for number in batch]
            scores = iter(self._batch(of_batch).tolist())
            for row in of_batch:
                found[row] = [next(scores) for _ in row.positions]
        return [found[row] for row in rows]

    def _batch(self, rows: Sequence[MaskedRow]) -> torch.Tensor:
        """fp32 [N], the targets of all rows one after another."""
        pad = self.tokenizer.pad_token_id or 0
        ids = pad_sequence([torch.tensor(row.input_ids) for row in rows], batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(row.input_ids) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        numbers = [number for number, row in enumerate(rows) for _ in row.positions]
        places = torch.tensor([numbers, [place for row in rows for place in row.positions]], device=self._device)
        targets = torch.tensor([target for row in rows for target in row.targets], device=self._device)
        with autocast(self._device, self._precision):
            logits = logits_at(self.model, ids.to(self._device), mask.to(self._device), places)
        return logits.float().log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1).cpu()


def mask_tokenizer(pretrained: Pretrained) -> PreTrainedTokenizerBase:
    """Its tokenizer. Raises CramError where that has no [MASK], or cannot say which characters a token is of."""
    tokenizer = pretrained.tokenizer()
    if tokenizer.mask_token_id is None:
        raise CramError(f"{pretrained.name}: its tokenizer has no [MASK] token, so it is no masked language model")
    if not tokenizer.is_fast:
        raise CramError(f"{pretrained.name}: its tokenizer is not a fast one (tokenizer.json), which scoring needs")
    return tokenizer


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Row numbers by batch, longest rows first: at most `tokens` with padding, but at least one row."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        count = max(1, tokens // max(1, lengths[order[start]]))
        yield order[start : start + count]
        start += count


def logits_at(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """Logits [N, V] at `places` int64 [2, N], numbers of rows and of columns; `input_ids`, `attention_mask` [B, L].

    The decoder, most of the work of a small model and most of the memory of any, sees the hidden states of these places
    alone where the model has one to hook; of one that has not, logits of all places are made and most thrown away.
    """
    rows, columns = places
    with _decoder_inputs(model, lambda hidden: _picked(hidden, input_ids, rows, columns)):
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    return logits if logits.ndim == 2 else logits[rows, columns]


def _picked(hidden: torch.Tensor, input_ids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
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
