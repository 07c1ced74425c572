"""Tokenizer folders that transformers 4 and 5 both load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cram_composer.storage.files import read_json, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Return False for a folder without vocabulary, for which transformers 5 invents a tokenizer from config.json."""
    return any(any(folder.glob(pattern)) for pattern in ("tokenizer.json", "vocab*", "*.model", "tokenizer.model*"))


def id_count(backend: Tokenizer) -> int:
    """Return the largest id and 1: the rows of an embedding, more than the entries if the ids have holes."""
    return max(backend.get_vocab().values(), default=-1) + 1


def write_tokenizer_folder(tokenizer: Any, folder: Path) -> str:
    """Write a fast tokenizer of transformers with `save_pretrained`; return its class by a name of both versions."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    if config.get("tokenizer_class") == "TokenizersBackend":  # the name in 5, which also reads the one in 4
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if not config.get("extra_special_tokens", True):  # an empty list in 5, where 4 wants a dict
        del config["extra_special_tokens"]
    write_json(path, config)
    return str(config["tokenizer_class"])
