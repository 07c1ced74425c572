"""The largest microbatch that fits is found by trying, in processes that may run out of memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import CramError
from cram_composer.planning import microbatch
from cram_composer.planning.microbatch import candidates, find_largest
from tests.conftest import REPOSITORY, SMALL
from tests.data.data_sets import write_data_set

AUTO = "train.device_train_microbatch_size=auto"
WIDE = ["model.intermediate_size=16384", "train.batch_size=512", "train.compile=off", "train.threads=1"]


def configuration(data: Path, *overrides: str) -> RunConfig:
    settings = [*SMALL, f"data.local={data}", AUTO, *overrides]
    return compose(RunConfig, REPOSITORY / "yamls" / "cram-cpu.yaml", settings).config


def test_candidates_divide_the_batch_and_end_where_larger_ones_are_no_faster(tmp_path: Path):
    config = configuration(write_data_set(tmp_path / "data"), "train.batch_size=96")
    assert candidates(config, 1, 16, "cpu") == [1, 2, 4, 8, 16, 32]
    assert candidates(config, 2, 16, "cpu") == [1, 2, 4, 8, 16]
    assert candidates(config, 1, 16, "cpu", below=8) == [1, 2, 4]
    assert candidates(config, 1, 2048, "cpu") == [1, 2, 4]
    assert candidates(config, 32, 16, "cpu") == [1]


@pytest.mark.parametrize(
    "fits, start, found, tried",
    [
        (16, 4, 16, [4, 8, 16, 32]),  # up until one does not fit
        (64, 16, 64, [16, 32, 64]),  # up to the largest
        (4, 16, 4, [16, 8, 4]),  # down to the first that fits
        (1, 64, 1, [64, 32, 16, 8, 4, 2, 1]),
    ],
)
def test_the_search_ends_at_the_largest_that_fits(fits, start, found, tried, tmp_path, monkeypatch):
    config, seen = configuration(write_data_set(tmp_path / "data")), []

    def one(config: RunConfig, devices: int, rows: int) -> float | None:
        seen.append(rows)
        return None if rows > 2 * fits else 0.9 if rows == fits else 0.95 if rows > fits else 0.1

    monkeypatch.setattr(microbatch, "_try", one)
    sizes = [1, 2, 4, 8, 16, 32, 64]
    best = microbatch._search(config, 1, sizes, sizes.index(start), 1e9)
    assert (best.rows, best.memory_share, seen) == (found, 0.9, tried)


def test_nothing_that_fits_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(microbatch, "_try", lambda config, devices, rows: None)
    with pytest.raises(CramError, match=r"not one row fits into [\d.]+ GB"):
        find_largest(configuration(write_data_set(tmp_path / "data")), 1)


def test_strategies_that_shard_are_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr(microbatch, "_try", lambda *arguments: pytest.fail("must not train"))
    config = configuration(write_data_set(tmp_path / "data"), "scaleout=fsdp2")
    found = find_largest(config, 2)
    assert (found.rows, found.measured) == (16, False) and 0.0 < found.memory_share < 0.1


def limited(config: RunConfig, settings: Path, gigabytes: float) -> subprocess.CompletedProcess[str]:
    """Search in a process whose allocations fail beyond a limit."""
    settings.write_text(json.dumps({"config": config.model_dump(mode="json"), "devices": 1}))
    limit = int(gigabytes * 2**30)
    return subprocess.run(
        [sys.executable, "-m", "cram_composer.planning.microbatch", str(settings)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )


@pytest.mark.slow  # five processes that each train steps
def test_memory_that_is_too_small_for_the_batch_halves_the_microbatch(tmp_path: Path):
    config = configuration(write_data_set(tmp_path / "data"), *WIDE)
    done = limited(config, tmp_path / "settings.json", 3.0)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["measured"] and 1 < found["rows"] < 512 and found["memory_share"] <= microbatch.USABLE
    config = configuration(tmp_path / "data", *WIDE, "model.hidden_size=2048", "model.intermediate_size=262144")
    done = limited(config, tmp_path / "settings.json", 3.0)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "not one row fits into 3.2 GB" in done.stderr
