"""Several ranks, and a run of each strategy on two of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.data_sets import write_data_set
from tests.scaleout.ranks import STRATEGIES, Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Trains on made-up rows."""
    data = write_data_set(tmp_path_factory.mktemp("made-up") / "data", 512)
    return Ranks(data, tmp_path_factory.mktemp("scaleout"))


@pytest.fixture(scope="session")
def one_rank(ranks: Ranks) -> Path:
    """What all others are compared with."""
    return ranks("one", 1, "recipes=[crammed-bert,ema]", "checkpoint.interval=0.000001s")


@pytest.fixture(scope="session")
def two_ranks(ranks: Ranks) -> dict[str, Path]:
    """The same steps on two ranks, by strategy, with a checkpoint after each."""
    shared = ["recipes=[crammed-bert,ema]", "checkpoint.interval=0.000001s", "eval.interval=0.3"]
    return {name: ranks(name, 2, *settings, *shared) for name, settings in STRATEGIES.items()}
