"""Sources of models to evaluate: a run folder, an export, a Hugging Face folder or a model name on the hub."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cram_composer.data.tokenizer_files import has_tokenizer
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.encode import LENGTH_MULTIPLE
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import (
    CramBertForMaskedLM,
    CramBertForSequenceClassification,
    CramBertModel,
)
from cram_composer.models.export import GENERATOR, no_progress_bars
from cram_composer.runs.folder import RECORD
from cram_composer.storage.hub_errors import hub_refusal

_DROPOUT_KEYS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "mlp_dropout", "dropout",
    "attention_dropout", "embedding_dropout", "seq_classif_dropout",
)  # fmt: skip
_UNTRAINED = "untrained:"


@dataclass(frozen=True)
class ModelSource:
    """A model to evaluate.

    Attributes:
        name: as given by the user.
        source: a folder, or a name on the hub.
        hash: identifies weights and tokenizer.
        untrained: only architecture and tokenizer are used; weights are initialised anew for every seed.
    """

    name: str
    source: str
    hash: str
    untrained: bool = False

    @property
    def has_token_types(self) -> bool:
        """True if the model uses token types, which distinguish the texts of a pair."""
        return "token_type_ids" in self.load_tokenizer().model_input_names and bool(
            getattr(self._load_config(), "type_vocab_size", 0)
        )

    @property
    def hidden_size(self) -> int:
        """Width of the encoder, or a huge number if unknown. Raises CramError if the configuration cannot be loaded."""
        return int(getattr(self._config_with_dropout(0.0), "hidden_size", sys.maxsize))

    def check_loadable(self) -> None:
        """Raise CramError if the tokenizer or the configuration cannot be loaded."""
        self.load_tokenizer()
        self._config_with_dropout(0.0)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer. Raises CramError."""
        if Path(self.source).is_dir() and not has_tokenizer(Path(self.source)):
            raise CramError(f"{self.name}: its tokenizer cannot be loaded: the folder has no tokenizer.json")
        try:
            # With its configuration, AutoTokenizer does not ask whether to run the code of a CramBERT folder.
            known = {"config": self._load_config()} if self._is_crambert() else {}
            return AutoTokenizer.from_pretrained(self.source, trust_remote_code=False, **known)
        except Exception as error:  # it raises many types, such as TypeError for a folder without a tokenizer
            raise CramError(f"{self.name}: its tokenizer cannot be loaded: {_one_line(error)}") from None

    def load_classifier(self, num_labels: int, dropout: float) -> PreTrainedModel:
        """Load the encoder with a new head of `num_labels` outputs, drawn from torch's generator. Raises CramError."""
        config = self._config_with_dropout(dropout)
        config.num_labels = num_labels
        config.problem_type = "regression" if num_labels == 1 else "single_label_classification"
        model: PreTrainedModel = self._load(
            CramBertForSequenceClassification, AutoModelForSequenceClassification, config
        )
        return model

    def load_encoder(self, dropout: float) -> PreTrainedModel:
        """Load the model without a head; torch's generator draws the weights of an untrained one. Raises CramError."""
        model: PreTrainedModel = self._load(CramBertModel, AutoModel, self._config_with_dropout(dropout))
        return model

    def _config_with_dropout(self, dropout: float) -> PretrainedConfig:
        try:
            config = self._load_config()
        except (OSError, ValueError) as error:
            raise CramError(f"{self.name}: cannot be loaded: {_one_line(error)}") from None
        for key in _DROPOUT_KEYS:
            if getattr(config, key, None) is not None:
                setattr(config, key, dropout)
        return config

    def _load(self, crambert: Any, auto: Any, config: PretrainedConfig) -> Any:
        model_class = crambert if isinstance(config, CramBertConfig) else auto
        try:
            if self.untrained:
                return model_class(config) if model_class is crambert else model_class.from_config(config)
            # Discards the head of another task, such as that of a model fine-tuned on MNLI.
            with no_progress_bars():
                return model_class.from_pretrained(self.source, config=config, ignore_mismatched_sizes=True)
        except (OSError, ValueError) as error:
            raise CramError(f"{self.name}: cannot be loaded: {_one_line(error)}") from None

    def masked_lm_source(self) -> ModelSource:
        """Return the model itself or, for an encoder without a masked-LM head, its generator, which is reported."""
        generator = Path(self.source) / GENERATOR
        if not (generator / "config.json").is_file():
            return self
        print(f"{self.name}: the encoder has no masked-LM head; its generator is used", file=sys.stderr, flush=True)
        return replace(self, source=str(generator))

    def load_masked_lm(self, seed: int) -> PreTrainedModel:
        """Load the model with its masked-LM head for evaluation; `seed` initialises an untrained one.

        Raises:
            CramError: the model cannot be loaded, or has no masked-LM head.
        """
        try:
            config = self._load_config()
            model_class: Any = CramBertForMaskedLM if isinstance(config, CramBertConfig) else AutoModelForMaskedLM
            if self.untrained:
                torch.manual_seed(seed)
                draw = model_class if isinstance(config, CramBertConfig) else model_class.from_config
                return draw(config).eval()
            with no_progress_bars():
                model, found = model_class.from_pretrained(self.source, config=config, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise CramError(f"{self.name}: cannot be loaded as a masked LM: {_one_line(error)}") from None
        if missing := sorted(found["missing_keys"]):
            raise CramError(
                f"{self.name}: not a masked LM: it lacks weights of {type(model).__name__}, such as {missing[0]}"
            )
        return model.eval()

    def max_length(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the longest row in tokens that the configuration and the tokenizer allow."""
        positions = getattr(self._load_config(), "max_position_embeddings", None)
        return min(tokenizer.model_max_length, positions or tokenizer.model_max_length)

    def row_length(self, requested: int) -> int:
        """Return the row length for fine-tuning: `requested`, or the longest one after padding."""
        return min(requested, self.max_length(self.load_tokenizer()) // LENGTH_MULTIPLE * LENGTH_MULTIPLE)

    def _is_crambert(self) -> bool:
        values, _ = PretrainedConfig.get_config_dict(self.source)
        return values.get("model_type") == CramBertConfig.model_type

    def _load_config(self) -> PretrainedConfig:
        if self._is_crambert():
            return CramBertConfig.from_pretrained(self.source)  # this project's code, not code in the folder
        return AutoConfig.from_pretrained(self.source, trust_remote_code=False)


def find_model(name: str) -> ModelSource:
    """Find a run folder, a model folder or a model on the hub by name. Raises CramError.

    "untrained:NAME" is the architecture of NAME with random weights, the baseline without pretraining.
    """
    if name.startswith(_UNTRAINED):
        model = find_model(name.removeprefix(_UNTRAINED))
        return replace(model, name=name, hash=f"untrained-{model.hash}", untrained=True)
    folder = Path(name)
    if (folder / RECORD).is_file():
        folder = folder / "export"
        if not (folder / "config.json").is_file():
            raise CramError(f"{name}: the run has no export yet; run: cram export {name}")
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CramError(f"{folder}: not a run folder or a model: it has neither {RECORD} nor config.json")
        return ModelSource(name, str(folder), _hash_folder(folder))
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise CramError(f"{name}: no such folder")
    return ModelSource(name, name, f"hub:{name}")


def _hash_folder(folder: Path) -> str:
    """Hash the weights, the configuration and the tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin") or path.name in ("config.json", "tokenizer.json", "vocab.txt"):
            digest.update(path.name.encode())
            with open(path, "rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
    return digest.hexdigest()[:16]


def _one_line(error: Exception) -> str:
    return hub_refusal(error) or " ".join(str(error).split())[:300]
