"""What is evaluated: a run of ours, an export, a Hugging Face folder or name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.encode import LENGTH_MULTIPLE
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM, CramBertForSequenceClassification

_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "mlp_dropout", "dropout",
    "attention_dropout", "embedding_dropout", "seq_classif_dropout",
)  # fmt: skip
_UNTRAINED = "untrained:"


@dataclass(frozen=True)
class Pretrained:
    """A model to evaluate: `source` is a folder or a hub's name, `hash` identifies its weights and tokenizer.

    One that is `untrained` has the architecture and the tokenizer alone; its weights are drawn anew for every seed.
    """

    name: str
    source: str
    hash: str
    untrained: bool = False

    @property
    def has_token_types(self) -> bool:
        """Whether it reads token types: which text of a pair a token is of."""
        return "token_type_ids" in self.tokenizer().model_input_names and bool(
            getattr(self._config(), "type_vocab_size", 0)
        )

    def check(self) -> None:
        """Raises CramError when its tokenizer or its configuration cannot be loaded."""
        self.tokenizer()
        try:
            self._config()
        except (OSError, ValueError) as error:
            raise CramError(f"{self.name}: cannot be loaded: {_line(error)}") from None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer. Raises CramError."""
        try:
            return AutoTokenizer.from_pretrained(self.source)
        except Exception as error:  # it raises a great many types, of a folder without one TypeError
            raise CramError(f"{self.name}: its tokenizer cannot be loaded: {_line(error)}") from None

    def classifier(self, num_labels: int, dropout: float) -> PreTrainedModel:
        """The encoder under a fresh head with `num_labels` outputs, drawn from torch's generator. Raises CramError."""
        try:
            config = self._config()
            config.num_labels = num_labels
            config.problem_type = "regression" if num_labels == 1 else "single_label_classification"
            for key in _DROPOUTS:
                if getattr(config, key, None) is not None:
                    setattr(config, key, dropout)
            kind: Any = AutoModelForSequenceClassification
            if isinstance(config, CramBertConfig):
                kind = CramBertForSequenceClassification
            if self.untrained:
                draw = kind if isinstance(config, CramBertConfig) else kind.from_config
                return draw(config)
            # The head of another task, as in a model that goes on from MNLI's, is left behind.
            return kind.from_pretrained(self.source, config=config, ignore_mismatched_sizes=True)
        except (OSError, ValueError) as error:
            raise CramError(f"{self.name}: cannot be loaded: {_line(error)}") from None

    def masked_lm(self, seed: int) -> PreTrainedModel:
        """It with its masked-LM head, for evaluation; `seed` draws the weights of one that is untrained.

        Raises:
            CramError: it cannot be loaded, or has no such head.
        """
        try:
            config = self._config()
            kind: Any = CramBertForMaskedLM if isinstance(config, CramBertConfig) else AutoModelForMaskedLM
            if self.untrained:
                torch.manual_seed(seed)
                draw = kind if isinstance(config, CramBertConfig) else kind.from_config
                return draw(config).eval()
            model, found = kind.from_pretrained(self.source, config=config, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise CramError(f"{self.name}: cannot be loaded as a masked LM: {_line(error)}") from None
        if missing := sorted(found["missing_keys"]):
            raise CramError(
                f"{self.name}: no masked LM: it lacks weights of {type(model).__name__}, such as {missing[0]}"
            )
        return model.eval()

    def max_length(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens of its longest row, by its configuration and its tokenizer."""
        positions = getattr(self._config(), "max_position_embeddings", None)
        return min(tokenizer.model_max_length, positions or tokenizer.model_max_length)

    def row_length(self, asked: int) -> int:
        """Tokens of a row for fine-tuning: as many as are asked for, or as it takes once rows are padded."""
        return min(asked, self.max_length(self.tokenizer()) // LENGTH_MULTIPLE * LENGTH_MULTIPLE)

    def _config(self) -> PretrainedConfig:
        values, _ = PretrainedConfig.get_config_dict(self.source)
        if values.get("model_type") == CramBertConfig.model_type:
            return CramBertConfig.from_pretrained(self.source)  # this project's code, whatever the folder brings
        return AutoConfig.from_pretrained(self.source)


def find_pretrained(name: str) -> Pretrained:
    """The run folder, the model folder or the model of the hub called `name`.

    "untrained:NAME" is its architecture with random weights: what fine-tuning reaches without any pretraining.

    Raises CramError.
    """
    if name.startswith(_UNTRAINED):
        model = find_pretrained(name.removeprefix(_UNTRAINED))
        return replace(model, name=name, hash=f"untrained-{model.hash}", untrained=True)
    folder = Path(name)
    if (folder / "record.json").is_file():
        folder = folder / "export"
        if not (folder / "config.json").is_file():
            raise CramError(f"{name}: this run has no export yet; make one: cram export {name}")
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CramError(f"{folder}: neither a run nor a model: it has no record.json and no config.json")
        return Pretrained(name, str(folder), _hash(folder))
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise CramError(f"{name}: no such folder")
    return Pretrained(name, name, f"hub:{name}")


def _hash(folder: Path) -> str:
    """Of the weights, the configuration and the tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin") or path.name in ("config.json", "tokenizer.json", "vocab.txt"):
            digest.update(path.name.encode())
            with open(path, "rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
    return digest.hexdigest()[:16]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
