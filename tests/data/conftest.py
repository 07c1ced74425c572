"""A small corpus and build configuration for the tests of the data build."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cram_composer.config.schema.data_build import DataBuildConfig, FilesConfig, PackingConfig, TokenizerConfig

SYLLABLES = ["ba", "co", "di", "fu", "ga", "ho", "li", "mo", "nu", "pe", "ri", "so", "ta", "ve", "wi", "zo"]


def synthetic_documents(count: int, seed: int = 0) -> list[str]:
    """Return different documents of 20 to 120 words, which a small vocabulary covers."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(SYLLABLES, random.integers(1, 4))) for _ in range(600)]
    lengths = random.integers(20, 120, count)
    return [f"{' '.join(random.choice(words, length))} {number}." for number, length in enumerate(lengths)]


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return synthetic_documents(400)


@pytest.fixture(scope="session")
def corpus(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the documents as a .jsonl file."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> DataBuildConfig:
    return DataBuildConfig(
        name="test",
        output=str(tmp_path / "out"),
        sources=[FilesConfig(paths=[str(corpus)])],
        tokenizer=TokenizerConfig(vocab_size=400),
        packing=PackingConfig(sequence_length=32, block_rows=16),
        validation_fraction=0.1,
    )
