"""The tokenizer of a data set: trained on a sample of its text or adopted from a folder, and saved as a folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, processors

from cram_composer.config.paths import expand
from cram_composer.config.schema.data_build import TokenizerConfig
from cram_composer.data.pipeline.tokenizer.common import SPECIAL_TOKENS
from cram_composer.data.tokenizer_files import has_tokenizer, id_count, write_tokenizer_folder
from cram_composer.errors import CramError

MODEL_MAX_LENGTH = 512


@dataclass(frozen=True)
class BuiltTokenizer:
    """A tokenizer, the ids of its special tokens by role, and the hash of its tokenizer.json."""

    backend: Tokenizer
    vocab_size: int
    special_tokens: dict[str, int]
    sha256: str

    @property
    def dtype(self) -> np.dtype:
        """Smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 65535 else np.uint32)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> BuiltTokenizer:
    """Save a trained tokenizer as a folder for AutoTokenizer, with BERT's [CLS] A [SEP] B [SEP] template."""
    from transformers import PreTrainedTokenizerFast

    # If words carry the space before them, so does the mask that replaces a word.
    spaced = not isinstance(tokenizer.model, models.WordPiece)
    tokens = {
        role: AddedToken(token, lstrip=spaced and role == "mask", special=True)
        for role, token in SPECIAL_TOKENS.items()
    }
    tokenizer.add_special_tokens(list(tokens.values()))
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],  # no token types: [SEP] separates pairs
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in tokens.items()},
    )
    return _save(wrapped, folder)


def adopt_tokenizer(config: TokenizerConfig, folder: Path) -> BuiltTokenizer:
    """Copy the existing tokenizer at `config.path`, changing only its maximum length. Raises CramError."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = expand(config.path or "")
    if not source.is_dir():
        raise CramError(f"tokenizer.path: {source} is not a folder of a Hugging Face tokenizer")
    if not has_tokenizer(source):
        raise CramError(f"tokenizer.path: {source} cannot be loaded: the folder has no tokenizer.json")
    try:
        loaded = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except Exception as error:  # from_pretrained raises many types
        reason = _wrap_hint(source) or (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CramError(f"tokenizer.path: {source} cannot be loaded: {reason}") from error
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise CramError(f"tokenizer.path: {source} has no fast tokenizer (tokenizer.json)")
    missing = [role for role in SPECIAL_TOKENS if getattr(loaded, f"{role}_token_id") is None]
    if missing:
        hint = _wrap_hint(source) or "masked LM training needs all of them"
        raise CramError(f"tokenizer.path: {source} names no {', '.join(missing)} token; {hint}")
    roles: dict[int, list[str]] = {}
    for role in SPECIAL_TOKENS:
        roles.setdefault(getattr(loaded, f"{role}_token_id"), []).append(role)
    for same in roles.values():
        if len(same) > 1:  # such as padding that hides every [SEP]
            raise CramError(
                f"tokenizer.path: {source} uses one token, '{getattr(loaded, f'{same[0]}_token')}', as "
                f"{' and '.join(same)}; add a token of its own for each with add_special_tokens and save_pretrained"
            )
    return _save(loaded, folder)


def _wrap_hint(source: Path) -> str | None:
    """Return how to complete a folder that has a vocabulary but no configuration; None for other folders."""
    if any((source / name).is_file() for name in ("tokenizer_config.json", "special_tokens_map.json")):
        return None
    if (file := source / "tokenizer.json").is_file():
        names = ", ".join(f"{role}_token='{token}'" for role, token in SPECIAL_TOKENS.items())
        wrapped = f"PreTrainedTokenizerFast(tokenizer_file='{file}', {names})"
        return f"name them once in Python: {wrapped}.save_pretrained('FOLDER'), then set tokenizer.path=FOLDER"
    if (source / "vocab.txt").is_file():
        wrapped = f"BertTokenizerFast.from_pretrained('{source}')"
        return f"convert vocab.txt once in Python: {wrapped}.save_pretrained('FOLDER'), then set tokenizer.path=FOLDER"
    return None


def _save(wrapped: Any, folder: Path) -> BuiltTokenizer:
    wrapped.model_max_length = MODEL_MAX_LENGTH
    write_tokenizer_folder(wrapped, folder)
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    roles = {role: getattr(wrapped, f"{role}_token_id") for role in SPECIAL_TOKENS}
    backend = open_backend(folder)
    return BuiltTokenizer(backend, id_count(backend), roles, digest)


def open_backend(folder: Path) -> Tokenizer:
    """Load a saved tokenizer for encoding documents: no truncation, no padding, no special tokens in the text."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # "[MASK]" in a document is text, not a mask
    return backend
