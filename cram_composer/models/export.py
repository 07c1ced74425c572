"""Export of a masked LM as a Hugging Face folder, its verification, and fill-mask predictions."""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from cram_composer.data.tokenizer_files import write_tokenizer_folder
from cram_composer.errors import CramError
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM, CramBertModel
from cram_composer.models.factory import longest_input
from cram_composer.models.native import to_native
from cram_composer.models.replaced_tokens import ReplacedTokenDetector
from cram_composer.storage.files import naming_full_disk

GENERATOR = "generator"  # subfolder of the export of an encoder without a head
_GENERATOR_CARD = """# Generator

The masked language model that replaced tokens while the encoder in the folder above was trained. It fills masks; for
everything else use the encoder.
"""


def export_model(
    model: PreTrainedModel,
    tokenizer_dir: Path,
    destination: Path,
    card: str,
    metadata: Mapping[str, str] | None = None,
    generator: PreTrainedModel | None = None,
) -> Path:
    """Write fp32 safetensors, config, tokenizer, README.md, and CramBERT's code if the model needs it.

    The folder is written under a temporary name and renamed, so `destination` is never incomplete.

    Args:
        model: the result of `exported_form`.
        tokenizer_dir: a tokenizer folder.
        destination: the folder to write; replaced if it exists.
        card: text of README.md.
        metadata: texts for the header of the safetensors files.
        generator: a masked LM to write into the subfolder GENERATOR, for a model that has no head of its own.

    Returns:
        `destination`.

    Raises:
        DiskFullError: nothing was written.
    """
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with naming_full_disk(destination), no_progress_bars():
            _write(model, tokenizer_dir, temporary, card, metadata or {})
            if generator is not None:
                _write(generator, tokenizer_dir, temporary / GENERATOR, _GENERATOR_CARD, metadata or {})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    previous = destination.with_name(f".{destination.name}.{os.getpid()}.old")
    if destination.exists():
        os.replace(destination, previous)
    os.replace(temporary, destination)
    shutil.rmtree(previous, ignore_errors=True)
    return destination


def _write(model: PreTrainedModel, tokenizer_dir: Path, folder: Path, card: str, metadata: Mapping[str, str]) -> None:
    # Without types in the model, a tokenizer that returns them would make every call fail, or for nothing larger.
    has_types = getattr(model.config, "type_vocab_size", 0) > 1
    names = {} if has_types else {"model_input_names": ["input_ids", "attention_mask"]}
    # transformers 4's pipelines load no tokenizer for a class of model they don't know unless it is named.
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, **names)
    tokenizer.model_max_length = longest_input(model) or tokenizer.model_max_length
    model.config.tokenizer_class = write_tokenizer_folder(tokenizer, folder)
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # save_pretrained takes no metadata
        save_file(load_file(weights), weights, {"format": "pt", **metadata})
    readme = folder / "README.md"
    readme.write_text(card, encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(readme.stat().st_mode)  # those of weights and copied code differ by version of the libraries


def exported_form(model: PreTrainedModel) -> PreTrainedModel:
    """Convert a network for export: to an equivalent class of transformers if there is one, else to a plain copy.

    The model may have any dtype, be on any device and use fused norms. Of a detector of replaced tokens, the encoder is
    exported, with its masked-LM head if it has one.
    """
    if isinstance(model, ReplacedTokenDetector):
        model = model.trained_encoder()
    if isinstance(model, CramBertModel):
        return _encoder_form(model)
    copied = plain_copy(model)
    native = to_native(copied) if isinstance(copied, CramBertForMaskedLM) else None
    return copied if native is None else native


def _encoder_form(encoder: CramBertModel) -> PreTrainedModel:
    """Convert an encoder without a head as `exported_form` does."""
    with torch.random.fork_rng():
        masked_lm = CramBertForMaskedLM(cast(CramBertConfig, copy.deepcopy(encoder.config)))
    masked_lm.encoder.load_state_dict(encoder.state_dict())
    copied = plain_copy(masked_lm)
    native = to_native(cast(CramBertForMaskedLM, copied))
    if native is not None:
        ours, theirs = (getattr(m.base_model, "final_norm", None) for m in (copied, native))
        if ours is None or theirs is None or torch.equal(ours.weight, theirs.weight):  # else equal only with a head
            return cast(PreTrainedModel, native.base_model)
    return cast(PreTrainedModel, copied.base_model)


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the model to the CPU in fp32 and evaluation mode, with plain torch modules and no token dropping.

    The copy is a new instance without fused kernels and compiled code. Its weights are tied as the class ties them;
    safetensors rejects any other sharing.
    """
    config = copy.deepcopy(model.config)
    if isinstance(config, CramBertConfig) and config.stack == "token-dropping":
        config.stack = "plain"  # token dropping has no weights, and fine-tuning must not drop tokens
    with torch.random.fork_rng():  # discards the initial values
        copied = type(model)(config)
    copied.load_state_dict(model.state_dict())
    return copied.eval()


def verify_export(destination: Path, model: PreTrainedModel, tolerance: float = 1e-4) -> float:
    """Load an exported folder and compare its logits with the model's, in fp32 on the CPU, with padding in the batch.

    Of an encoder without a head, the last hidden states are compared.

    Args:
        destination: a folder written by `export_model`.
        model: the model that was exported, with the exported weights.
        tolerance: largest absolute difference allowed; an equivalent class may sum in a different order.

    Returns:
        The largest absolute difference of a logit.

    Raises:
        CramError: the difference is above `tolerance` or NaN.
    """
    if isinstance(model, ReplacedTokenDetector):
        if model.head is None:
            verify_export(destination / GENERATOR, model.trained_generator(), tolerance)
        model = model.trained_encoder()
    auto = AutoModel if isinstance(model, CramBertModel) else AutoModelForMaskedLM
    with no_progress_bars():
        loaded = auto.from_pretrained(destination, trust_remote_code=True).eval()
    original = copy.deepcopy(model).float().cpu().eval()
    config = model.config
    length = min(128, longest_input(model) or 128)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(config.vocab_size, (2, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, length // 2 :] = 0
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        logits = (m(input_ids=input_ids, attention_mask=attention_mask)[0] for m in (original, loaded))
        difference = float(torch.max(torch.abs(torch.sub(*logits))[attention_mask.bool()]))
    if not difference <= tolerance:
        raise CramError(
            f"{destination}: exported outputs differ from the trained model's by {difference:.2e}, not <= {tolerance}"
        )
    return difference


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, which stay on the console after a second."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


Guesses = list[tuple[str, float]]


def fill_masks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], k: int = 3
) -> list[Guesses]:
    """Predict the `k` most likely tokens, with probabilities, for the first mask of each sentence.

    Raises:
        CramError: a sentence contains no mask token, or only beyond the length of the model or the tokenizer.
    """
    return [fill_every_mask(model, tokenizer, sentence, k)[0] for sentence in sentences]


def fill_every_mask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentence: str, k: int) -> list[Guesses]:
    """Predict as `fill_masks` for each mask of a sentence, given the text with all of them masked."""
    limit = min(tokenizer.model_max_length, longest_input(model) or math.inf)
    encoded = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=limit)
    positions = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
    if not len(positions):
        raise CramError(f"sentence '{sentence}': contains no {tokenizer.mask_token} in the first {limit} tokens")
    training = model.training
    model.eval()
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        inputs = {name: encoded[name].to(model.device) for name in ("input_ids", "attention_mask")}
        probabilities = model(**inputs).logits[0, positions].float().softmax(dim=-1)
    model.train(training)
    best = probabilities.topk(k)
    return [
        [(str(tokenizer.decode([token])).strip(), value) for token, value in zip(tokens, values, strict=True)]
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
