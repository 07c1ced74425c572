"""docs/explanation/reliability.md, from the results of a run of the whole matrix."""

from __future__ import annotations

import re
from typing import Any

from cram_composer.storage.files import write_atomic
from tests.conftest import REPOSITORY
from tests.faults.faults import AT_ONCE, FAULTS, START, WAITED
from tests.faults.scene import DEADLINE, STEPS, Fault

PATH = REPOSITORY / "docs" / "explanation" / "reliability.md"
_TEXT = f"""\
# Reliability of data access

This page shows the outcome of every fault. `python -m pytest tests/faults --faults --write-table` writes this page from
the latest result of every case; do not edit it. With `-k azurite`, only the cases of that server run, and other rows
stay.

## The experiment

Each row is a training with `python train.py` that reads its shards from a server on the same machine into an empty
cache. The server is SeaweedFS (S3), or what the row names: rclone, Azurite, an emulator of Google Cloud Storage. The
services themselves have not been tried. The fault happens before the start, or a few dozen of its {STEPS} steps
later to a shard that is not fetched yet. Each fault is repeated with `data.num_workers` = 0, 1 and 2. `data.deadline`
is {DEADLINE:.0f} s unless noted (default: 2 minutes). Each fetch gets at least 10 s.

The test asserts for each fault:

- The run ends by itself: with exit status 0 after all steps, or with exit status 2 and one line on stderr, without a
  traceback. `record.json` gives the same line as the reason.
- No process stays. No wrong row is trained on. The newest checkpoint is valid.
- After the cause is removed, **the same command** resumes from that checkpoint and finishes.

*Rows lost* counts the rows of all steps whose loss differs in any bit from the same step of an undisturbed run, over
all attempts of the finished run.

*Seconds* run from the fault to the end of the process, or from the start of the process if the fault comes first. Most
of that is importing libraries. If a run continues by itself, the seconds are the longest wait of a step for its rows.
All were measured on two busy cores.

A fault is noticed when the shard is needed. The test fails above {AT_ONCE:.0f} s if there is nothing to wait for,
{WAITED:.0f} s if the server may still answer, or {START:.0f} s from the start.

## Checks

Before the clock starts, one listing checks that every shard exists with the right size. Content is checked when a shard
is fetched: its hash must equal the one in the index before the shard is used. Set `data.mirror` to a second copy to
survive a damaged shard.

## Faults
"""


def write_table(results: list[dict[str, Any]]) -> None:
    """Write the text and a row per fault from the results of test_fault; a missing result is a dash.

    A fault without any result keeps its row.
    """
    found = {(result["name"], result["workers"]): result for result in results}
    kept = {line.split(" | ")[0]: f"{line}\n" for line in PATH.read_text().splitlines() if line.startswith("| ")}
    rows = []
    for fault in FAULTS:
        own = [found.get((fault.name, workers)) for workers in (0, 1, 2)]
        rows.append(_row(fault, own) if any(own) else kept.get(f"| {fault.what}", _row(fault, own)))
    header = "| fault | what the user sees | seconds, 0 / 1 / 2 workers | rows lost |\n| --- | --- | --- | --- |\n"
    write_atomic(PATH, f"{_TEXT}\n{header}{''.join(rows)}")


def _row(fault: Fault, results: list[dict[str, Any] | None]) -> str:
    seconds = " / ".join("-" if one is None else f"{one['seconds']:.1f}" for one in results)
    lost = " / ".join("-" if one is None else str(one["lost"]) for one in results)
    return (
        f"| {fault.what} | {_seen([one['said'] for one in results if one is not None], fault)} | {seconds} | {lost} |\n"
    )


def _seen(said: list[str], fault: Fault) -> str:
    """Return the output with any number of workers; lines that differ only in numbers are shown once."""
    different = {re.sub(r"\d+ s\b|shard\.\d+", "", line): line for line in reversed(said)}
    quoted = [f"`{line}`".replace("|", "\\|") for text in reversed(different.values()) for line in text.splitlines()]
    if fault.recovers:
        return "nothing: the run continues" + "".join(f"<br>{line}" for line in quoted)
    return "<br>or: ".join(quoted)
