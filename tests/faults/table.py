"""Write docs/reliability.md from the results of the fault matrix."""

from __future__ import annotations

import re
from typing import Any

from cram_composer.storage.files import write_atomic
from tests.conftest import REPOSITORY
from tests.faults.faults import AT_ONCE, FAULTS, START, WAITED
from tests.faults.scene import DEADLINE, STEPS, Fault

PATH = REPOSITORY / "docs" / "reliability.md"
_TEXT = f"""\
# Faults of the data source

Written by `python -m pytest tests/faults --faults --write-table` from the latest result of every case; do not edit.

Every row of the table is a training run with `python train.py` that fetches its shards from a real S3 server
(SeaweedFS, or rclone where noted) into an empty cache. A fault is injected before the start or, some dozens of its
{STEPS} steps later, into a shard that is not fetched yet. Each fault is tested with `data.num_workers` = 0, 1 and 2.
`data.deadline` is {DEADLINE:.0f} s unless noted (the default is 2 minutes); a fetch gets at least 10 s.

Each test asserts:

- The run ends by itself: with exit status 0 after all its steps, or with exit status 2 and one line on stderr, without
  a traceback. No process remains.
- After an error, no wrong row was trained on, `record.json` has the same line as the reason, and the newest checkpoint
  is intact.
- When the cause is removed, **the same command** resumes from that checkpoint and finishes the run.

*Rows lost* are the rows of all steps whose loss is not bit-identical to the loss of that step in an undisturbed run,
over all attempts of the run.

*Seconds* are from the fault to the end of the process. If the fault precedes the start, they are from the start, most
of which is importing libraries. If the run recovers, they are the longest wait of a step for its rows. A fault is
noticed when the shard is needed. The test fails after {AT_ONCE:.0f} s if there is nothing to wait for, {WAITED:.0f} s
if the server may still respond, or {START:.0f} s from the start. All were measured on two cores that did other work at
the same time.

Before the clock starts, one listing checks the presence and size of every shard. The content of a shard is compared
with the hash in the index after it is fetched and before it is used. Set `data.mirror` to a second copy if a damaged
shard must not end a run.
"""


def write_table(results: list[dict[str, Any]]) -> None:
    """Write the text and a row per fault from the results of test_fault; a missing result is a dash."""
    found = {(result["name"], result["workers"]): result for result in results}
    rows = [_row(fault, [found.get((fault.name, workers)) for workers in (0, 1, 2)]) for fault in FAULTS]
    header = "| fault | output on stderr | seconds, 0 / 1 / 2 workers | rows lost |\n| --- | --- | --- | --- |\n"
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
        return "the run continues" + "".join(f"<br>{line}" for line in quoted)
    return "<br>or: ".join(quoted)
