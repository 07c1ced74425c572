"""Fixtures for training on several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scaleout.ranks import Ranks


@pytest.fixture(scope="session")
def ranks(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Return a trainer on a data set with a tokenizer, which exports and whole-word masking need."""
    ranks = Ranks(tiny_data, tmp_path_factory.mktemp("scaleout"))
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def one_rank(ranks: Ranks) -> Path:
    """Train the one-rank run that all others are compared with."""
    return ranks("one", 1, *COMPARED)


# A checkpoint after every step, and a weight average for evaluations and exports.
COMPARED = ["recipes=[crammed-bert,ema]", "checkpoint.interval=0.000001s", "eval.interval=0.3"]
