"""docs/reliability.md, from the results of a run of the whole matrix."""

from __future__ import annotations

import re
from typing import Any

from cram_composer.storage.files import write_atomic
from tests.conftest import REPOSITORY
from tests.faults.faults import AT_ONCE, FAULTS, START, WAITED
from tests.faults.scene import DEADLINE, STEPS, Fault

PATH = REPOSITORY / "docs" / "reliability.md"
_TEXT = f"""\
# What happens when the data cannot be had

Written by `python -m pytest tests/faults --faults --write-table` from the latest result of every case; do not edit.
Every row of the table is a training with `python train.py` that reads its shards from a real S3 server (SeaweedFS;
rclone where it says so) into an empty cache, and to which something happens: before it starts, or some dozen of its
{STEPS} steps later, to a shard that it has yet to fetch. It is done three times, with `data.num_workers` = 0, 1 and 2.
`data.deadline` is {DEADLINE:.0f} s unless the row says otherwise (2 minutes is the default); a fetch is given 10 s at
least.

Asserted for each: the run ends by itself, with exit status 0 after all its steps, or with exit status 2 and one line on
stderr, without a traceback; no process stays; no wrong row was trained on; `record.json` gives the same line as the
reason; the newest checkpoint is whole. Then the cause is removed and **the same command** given again: it goes on from
that checkpoint to the end. *Rows lost* are those of every step whose loss is not, to the last bit, that of the same
step of a run that nothing happened to; they are counted over all starts of the run, when it is over.

*Seconds* are from the fault to the end of the process; from its start where the fault comes first, most of which is
importing libraries. A fault is noticed when the shard is needed. The test fails if it takes more than {AT_ONCE:.0f} s
where there is nothing to wait for, {WAITED:.0f} s where the server may yet answer, or {START:.0f} s from the start.
Where a run goes on by itself, the seconds are the longest that a step waited for its rows. All were taken on two cores
that did other work at the same time.

What is checked when: before the clock starts, one listing tells whether every shard is there and has its size; what is
in a shard is known only when it has been fetched, and is then compared with the hash in the index before the shard is
used. Set `data.mirror` to a second copy if a damaged shard must not end a run.
"""


def write_table(results: list[dict[str, Any]]) -> None:
    """Write the text and a row for each fault. `results` are those of test_fault; one that is not there is a dash."""
    found = {(result["name"], result["workers"]): result for result in results}
    rows = [_row(fault, [found.get((fault.name, workers)) for workers in (0, 1, 2)]) for fault in FAULTS]
    header = (
        "| what is done | what the user sees | seconds, 0 / 1 / 2 workers | rows lost |\n| --- | --- | --- | --- |\n"
    )
    write_atomic(PATH, f"{_TEXT}\n{header}{''.join(rows)}")


def _row(fault: Fault, results: list[dict[str, Any] | None]) -> str:
    seconds = " / ".join("-" if one is None else f"{one['seconds']:.1f}" for one in results)
    lost = " / ".join("-" if one is None else str(one["lost"]) for one in results)
    return (
        f"| {fault.what} | {_seen([one['said'] for one in results if one is not None], fault)} | {seconds} | {lost} |\n"
    )


def _seen(said: list[str], fault: Fault) -> str:
    """What was seen with any number of workers; lines that differ in a shard's or another number are shown once."""
    different = {re.sub(r"\d+ s\b|shard\.\d+", "", line): line for line in reversed(said)}
    quoted = [f"`{line}`".replace("|", "\\|") for text in reversed(different.values()) for line in text.splitlines()]
    if fault.recovers:
        return "nothing: the run goes on" + "".join(f"<br>{line}" for line in quoted)
    return "<br>or: ".join(quoted)
