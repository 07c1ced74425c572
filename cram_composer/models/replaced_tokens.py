"""Replaced-token detection: a generator fills masks by samples, and an encoder tells which tokens it replaced.

Clark et al. 2020, arXiv 2003.10555 (ELECTRA); He et al. 2021, arXiv 2111.09543 (DeBERTaV3) for `embeddings: gdes`; Meng
et al. 2021, arXiv 2102.08473 (COCO-LM) for the corrective head, here without its copy mechanism.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import MaskedLMOutput

from cram_composer.config.schema.objective import ReplacedTokenConfig
from cram_composer.data.masking import IGNORED
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.initialization import init_weights
from cram_composer.models.crambert.layer_calls import pick
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM, CramBertModel

_BLOCK = 64  # probabilities that are summed before their running sum is taken
_WIDTH_MULTIPLE = 8


@dataclass
class ReplacedTokenOutput(MaskedLMOutput):
    """Losses of a batch, and what the encoder's detector found.

    `loss` is the weighted sum. `logits` [B, K, V] are those of the masked LM that evaluation scores: the encoder's own
    head on rows with masks, or without one the generator. They are None in training.
    """

    generator_loss: torch.Tensor | None = None  # mean nats over labels
    corrective_loss: torch.Tensor | None = None  # mean nats over labels; None without the head
    detection: dict[str, torch.Tensor] | None = None  # see _Detector.forward


class ReplacedTokenDetector(CramBertForMaskedLM):
    """The encoder with a detector of replaced tokens, and the generator that replaces them. For training only.

    Args:
        config: of the encoder. The generator has its settings, but a plain stack and no value embeddings.
        objective: the objective; `generator_width` and `generator_layers` give the generator's size.

    Attributes:
        head: the corrective masked-LM head, None without `corrective_masks`.
    """

    def __init__(self, config: CramBertConfig, objective: ReplacedTokenConfig) -> None:
        super().__init__(config)
        self.objective = objective
        self.detector = _Detector(config)
        for module in self.detector.modules():
            init_weights(module, config.initializer_range)
        self.generator = CramBertForMaskedLM(generator_config(config, objective))
        if objective.corrective_masks is None:
            self.head: Any = None
        if objective.embeddings != "separate":
            self._connect_embeddings(disentangled=objective.embeddings == "gdes")
        self.sampler = _Sampler(self.generator, objective.temperature)

    def _connect_embeddings(self, disentangled: bool) -> None:
        own, theirs = self.encoder.embeddings, self.generator.encoder.embeddings
        if not disentangled:
            theirs.word_embeddings = own.word_embeddings
            if self.config.tie_word_embeddings:
                self.generator.head.decoder.weight = own.word_embeddings.weight
            return
        theirs.word_embeddings.load_state_dict(own.word_embeddings.state_dict())
        own.word_embeddings = _DisentangledEmbedding(theirs.word_embeddings)
        if self.head is not None and self.config.tie_word_embeddings:
            self.head.decoder = _DisentangledDecoder(self.head.decoder, own.word_embeddings)

    def get_output_embeddings(self) -> nn.Linear:
        """Return the generator's decoder, or that of the corrective head."""
        return (self.generator.head if self.head is None else self.head).decoder

    def forward(
        self,
        input_ids: torch.Tensor,
        masked_positions: torch.Tensor,
        labels: torch.Tensor,
        draws: torch.Tensor,
        kept: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
    ) -> ReplacedTokenOutput:
        """Replace masked tokens by samples of the generator, and judge every token.

        The detector's loss is a mean over all tokens but padding and kept masks.

        Args:
            input_ids: int64 [B, L], with masks.
            masked_positions: int64 [B, K].
            labels: int64 [B, K], the original tokens, -100 in unused slots.
            draws: fp32 [B, K], uniform in [0, 1), one for each sample.
            kept: bool [B, K], slots that keep their mask in the encoder's rows.
            attention_mask: as in CramBertModel.
            document_ids: as in CramBertModel.
        """
        known: dict[str, Any] = {"attention_mask": attention_mask, "document_ids": document_ids, "return_dict": True}
        generated = self.generator.encoder(input_ids, **known).last_hidden_state
        generator_loss, samples, logits = self.sampler(pick(generated, masked_positions), labels, draws)
        rows = replace_tokens(input_ids, masked_positions, labels, samples, kept)
        hidden = self.encoder(rows.input_ids, **known).last_hidden_state
        judged = rows.judged if attention_mask is None else rows.judged & attention_mask.bool()
        detection = self.detector(hidden, rows.replaced, judged)
        loss = generator_loss + self.objective.detection_weight * detection["loss"]
        corrective_loss = None
        if self.head is not None:
            if not self.training:  # the exported masked LM reads rows with all their masks
                hidden = self.encoder(input_ids, **known).last_hidden_state
            corrective_loss, own_logits = self.head(pick(hidden, masked_positions), labels)
            loss = loss + corrective_loss
            logits = logits if self.training else own_logits
        return ReplacedTokenOutput(
            loss=loss,
            logits=None if self.training else logits,
            generator_loss=generator_loss,
            corrective_loss=corrective_loss,
            detection=detection,
        )

    def trained_encoder(self) -> CramBertForMaskedLM | CramBertModel:
        """Return a plain copy of the encoder in fp32 on the CPU, with its masked-LM head if it has one."""
        state = {name: tensor.float().cpu() for name, tensor in self.state_dict().items()}
        embedding = "encoder.embeddings.word_embeddings.weight"
        if self.objective.embeddings == "gdes":
            full = state[embedding] + state[f"generator.{embedding}"]
            state[embedding] = full
            if self.head is not None and self.config.tie_word_embeddings:
                state["head.decoder.weight"] = full
        with torch.random.fork_rng():  # discards the initial values
            model: Any = (CramBertModel if self.head is None else CramBertForMaskedLM)(
                cast(CramBertConfig, copy.deepcopy(self.config))
            )
        prefix = "encoder." if self.head is None else ""
        model.load_state_dict({name: state[prefix + name] for name in model.state_dict()})
        found: CramBertForMaskedLM | CramBertModel = model.eval()
        return found

    def trained_generator(self) -> CramBertForMaskedLM:
        """Return a copy of the generator in fp32 on the CPU whose embedding and decoder have its own width.

        The product of an embedding and its projection is an embedding, so the copy computes the same without the
        setting that no class of transformers has. Its decoder is not tied.
        """
        state = {name: tensor.float().cpu() for name, tensor in self.generator.state_dict().items()}
        config = cast(CramBertConfig, copy.deepcopy(self.generator.config))
        if config.embedding_size not in (None, config.hidden_size):
            config.tie_word_embeddings = False
            inner = state.pop("encoder.embeddings.projection.weight")
            outer = state.pop("head.projection.weight")
            embedding = "encoder.embeddings.word_embeddings.weight"
            state[embedding] = state[embedding] @ inner.T
            state["head.decoder.weight"] = state["head.decoder.weight"] @ outer
        config.embedding_size = None
        with torch.random.fork_rng():
            model = CramBertForMaskedLM(config)
        model.load_state_dict(state)
        return model.eval()

    def masked_lm(self) -> CramBertForMaskedLM:
        """Return the masked LM that fills masks: a copy of the encoder with its head, or the generator."""
        found = self.trained_encoder()
        return found if isinstance(found, CramBertForMaskedLM) else self.generator


def generator_config(config: CramBertConfig, objective: ReplacedTokenConfig) -> CramBertConfig:
    """Return the generator's configuration: the encoder's, scaled, with heads of about the same width."""
    scaled = copy.deepcopy(config)
    share = objective.generator_width
    width = max(_WIDTH_MULTIPLE, round(share * config.hidden_size / _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE)
    width = min(width, config.hidden_size)
    most = max(1, width // (config.hidden_size // config.num_attention_heads))
    scaled.num_attention_heads = next(n for n in range(most, 0, -1) if width % n == 0 and width // n % 2 == 0)
    scaled.hidden_size = width
    scaled.intermediate_size = max(2, round(config.intermediate_size * width / config.hidden_size / 2) * 2)
    scaled.num_hidden_layers = objective.generator_layers or config.num_hidden_layers
    scaled.embedding_size = config.embedding_size or config.hidden_size
    if objective.embeddings == "separate":
        scaled.embedding_size = None
    scaled.stack, scaled.value_embeddings = "plain", 0
    return scaled


@dataclass
class ReplacedRows:
    """Rows for the encoder.

    Attributes:
        input_ids: int64 [B, L].
        replaced: bool [B, L], tokens that differ from the text.
        judged: bool [B, L], False at kept masks.
    """

    input_ids: torch.Tensor
    replaced: torch.Tensor
    judged: torch.Tensor


def replace_tokens(
    input_ids: torch.Tensor,
    masked_positions: torch.Tensor,
    labels: torch.Tensor,
    samples: torch.Tensor,
    kept: torch.Tensor | None = None,
) -> ReplacedRows:
    """Put `samples` int64 [B, K] into the rows; the other arguments are those of ReplacedTokenDetector.forward."""
    used = labels != IGNORED
    changes = used if kept is None else used & ~kept
    # Slots that change nothing write into a column behind the row, since they may repeat the position of another slot.
    behind = input_ids.shape[1]
    target = torch.where(changes, masked_positions, behind)
    rows = F.pad(input_ids, (0, 1)).scatter(1, target, samples)[:, :behind]
    no = torch.zeros_like(input_ids, dtype=torch.bool)
    replaced = F.pad(no, (0, 1)).scatter(1, target, samples != labels)[:, :behind]
    if kept is None:
        return ReplacedRows(rows, replaced, ~no)
    target = torch.where(kept & used, masked_positions, behind)
    return ReplacedRows(rows, replaced, ~F.pad(no, (0, 1)).scatter(1, target, kept)[:, :behind])


@torch.no_grad()
def sample(logits: torch.Tensor, draws: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Sample a token of softmax(logits / temperature) for every row of `logits` [N, V]: int64 [N].

    By inversion: the token at which the running sum of the probabilities passes `draws` fp32 [N], uniform in [0, 1).
    One number per token, instead of V for Gumbel noise, can be drawn with the masks, so that samples do not depend on
    devices. Running sums over blocks of the vocabulary, then within one block, are faster and lose less precision.
    """
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    count, size = probabilities.shape
    blocks = F.pad(probabilities, (0, -size % _BLOCK)).view(count, -1, _BLOCK)
    ends = blocks.sum(dim=-1).cumsum(dim=-1)
    target = draws[:, None] * ends[:, -1:]
    block = (ends <= target).sum(dim=-1, keepdim=True).clamp(max=ends.shape[1] - 1)
    before = F.pad(ends, (1, 0)).gather(1, block)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].cumsum(dim=-1)
    token = block[:, 0] * _BLOCK + (inside <= target - before).sum(dim=-1).clamp(max=_BLOCK - 1)
    return token.clamp(max=size - 1)


class _Sampler(nn.Module):
    """The generator's head, its loss and its samples, compiled as one module."""

    def __init__(self, generator: CramBertForMaskedLM, temperature: float) -> None:
        super().__init__()
        self._generator = (generator,)  # in a tuple, so that its weights are not listed twice
        self._temperature = temperature

    def forward(
        self, hidden: torch.Tensor, labels: torch.Tensor, draws: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the mean loss in nats over labels, samples int64 [B, K] and, in evaluation, logits [B, K, V]."""
        head = self._generator[0].head
        logits = head.logits(head.projection(head.transform(hidden)))
        total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        samples = sample(logits.flatten(0, 1), draws.flatten(), self._temperature).view_as(labels)
        loss = total / (labels != IGNORED).sum().clamp(min=1)
        return loss, samples, None if self.training else logits


class _Detector(nn.Module):
    """A dense layer, GELU and one logit per token, as in ELECTRA, with the loss."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, 1)

    def forward(self, hidden: torch.Tensor, replaced: torch.Tensor, judged: torch.Tensor) -> dict[str, torch.Tensor]:
        """Judge the tokens of `hidden` [B, L, H].

        Args:
            replaced: bool [B, L], tokens that differ from the text.
            judged: bool [B, L], tokens that count.

        Returns:
            "loss", the mean in nats over the tokens judged, and int64 counts of tokens: "judged", "replaced" among
            them, "detected" among those, and "false_alarms" among the others.
        """
        logits = self.out(F.gelu(self.dense(hidden)))[..., 0].float()
        losses = F.binary_cross_entropy_with_logits(logits, replaced.float(), reduction="none")
        loss = (losses * judged).sum() / judged.sum().clamp(min=1)
        found, real = (logits.detach() > 0) & judged, replaced & judged
        counts = {"judged": judged, "replaced": real, "detected": found & real, "false_alarms": found & ~real}
        return {"loss": loss} | {name: tokens.sum() for name, tokens in counts.items()}


class _DisentangledEmbedding(nn.Embedding):
    """The generator's embedding, which gets no gradient from here, plus an own one that starts at zero.

    He et al. 2021, arXiv 2111.09543, equation 7.
    """

    def __init__(self, source: nn.Embedding) -> None:
        super().__init__(source.num_embeddings, source.embedding_dim)
        nn.init.zeros_(self.weight)
        self._source = (source,)  # in a tuple, so that its weights are not listed twice

    @property
    def constant(self) -> torch.Tensor:
        """The generator's embedding, without a gradient."""
        return self._source[0].weight.detach()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(input_ids, self.constant) + super().forward(input_ids)


class _DisentangledDecoder(nn.Linear):
    """A decoder tied to a disentangled embedding."""

    def __init__(self, decoder: nn.Linear, embedding: _DisentangledEmbedding) -> None:
        super().__init__(decoder.in_features, decoder.out_features, bias=decoder.bias is not None)
        self.weight, self.bias = embedding.weight, decoder.bias
        self._embedding = (embedding,)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.weight + self._embedding[0].constant, self.bias)
