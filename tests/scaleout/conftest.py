"""Several ranks to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scaleout.ranks import Ranks


@pytest.fixture(scope="session")
def ranks(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Trains on a data set with a tokenizer, which exports and whole words need."""
    ranks = Ranks(tiny_data, tmp_path_factory.mktemp("scaleout"))
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def one_rank(ranks: Ranks) -> Path:
    """What all others are compared with."""
    return ranks("one", 1, *COMPARED)


# A checkpoint after every step, and an average that evaluations and exports use.
COMPARED = ["recipes=[crammed-bert,ema]", "checkpoint.interval=0.000001s", "eval.interval=0.3"]
