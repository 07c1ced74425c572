"""Records of the best runs, and the page that ranks them.

python -m benchmarks.leaderboard add RUN NAME "COMMAND"    # copies the run's record and scores, then writes the page
python -m benchmarks.leaderboard page                      # writes docs/reference/leaderboard.md again
cram compare runs/MINE benchmarks/leaderboard/NAME         # a run against the record holder

An entry is a folder that `cram` reads like a run folder, without trace, checkpoints and model. Paths of the machine are
shortened to their last part.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cram_composer.analysis.compare.comparability import data_refusals
from cram_composer.analysis.runs.run import RunData, load_run
from cram_composer.analysis.runs.table import budget_text, date
from cram_composer.config.formatting import count, decimal, percent, short_count
from cram_composer.errors import CramError
from cram_composer.runs.folder import EVALUATIONS, RECORD, ROW_LOSSES
from cram_composer.storage.files import write_atomic, write_json

FOLDER = Path(__file__).with_suffix("")
PAGE = FOLDER.parents[1] / "docs" / "reference" / "leaderboard.md"
_INTRODUCTION = """# Leaderboard

Runs of this project by data set and objective, the lowest held-out loss first; compare those of one budget on one kind
of hardware. The folder `benchmarks/leaderboard/NAME` has the whole record of each, and one command compares a run of
yours with it on the same data:

```bash
cram compare runs/MINE benchmarks/leaderboard/NAME
```

One run per row, which is an anecdote: a difference needs seeds ([statistics](../explanation/statistics.md)). Losses of
different data sets, vocabularies or objectives say nothing about each other; scores on tasks do.

"""
_PUBLISHED = """
## What others published

| model | parameters | text | BLiMP | SST-2 | STS-B | RTE | CoLA | mean |
| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| BERT-Tiny, 2 x 128 | 4.4 M | 3.3 G words | | 83.2 | 74.3 | 57.2 | 0.0 | 53.7 |
| BERT-Mini, 4 x 256 | 11 M | 3.3 G words | | 85.9 | 75.4 | 57.9 | 0.0 | 54.8 |
| BERT-Small, 4 x 512 | 29 M | 3.3 G words | | 89.7 | 78.8 | 61.8 | 27.8 | 64.5 |
| T5 | 220 M | 10 M words | 58.0 | | | | | |
| OPT-125M | 125 M | 10 M words | 62.6 | | | | | |
| GPT-2, baseline of 2026 | 124 M | 10 M words | 64.4 | | | | | |
| RoBERTa-base | 125 M | 10 M words | 69.5 | | | | | |
| GPT-BERT | 30 M | 10 M words | 70.4 | | | | | |

The BERTs are those of Turc et al. (2019, arXiv 1908.08962), on the test rows, with the best of a grid of settings per
task; `cram eval --suite glue-turc` selects in the same way. The others are baselines and entries of BabyLM's track
strict-small, 2023 to 2026, which leaves out pairs with words that its text lacks: less than two points say nothing.
"""
_SUBMISSION = """
## How to submit

1. Train with `budget.wall` or `budget.device_hours` on an otherwise idle machine; `others_cpu_share` in `record.json`
   is the share of the CPU that others used. No pretrained weights and no text that the tasks are made of.
2. Score it: `cram eval runs/RUN --suite glue-compact`, `cram eval runs/RUN --suite minimal-pairs --data BLIMP`.
3. `python -m benchmarks.leaderboard add runs/RUN NAME "COMMAND"`, and open a pull request with the new folder, this
   page and a data set or build file that others can get.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", help="add a finished run, or update its entry")
    add.add_argument("run", type=Path)
    add.add_argument("name")
    add.add_argument("command", help="the command that trained it")
    actions.add_parser("page", help="write the page again")
    options = parser.parse_args()
    try:
        if options.action == "add":
            add_entry(options.run, FOLDER / options.name, options.command)
        write_atomic(PAGE, page(FOLDER))
    except CramError as error:
        raise SystemExit(f"error: {error}") from None


def add_entry(run: Path, entry: Path, command: str) -> None:
    """Copy the record and the scores of a finished run. Raises CramError if it is unfinished or not from scratch."""
    found = load_run(run, curves=False)
    if found.get("status") != "finished" or found.get("init_from"):
        raise CramError(f"{run}: only finished runs from scratch are ranked; give the folder of one")
    entry.mkdir(parents=True, exist_ok=True)
    for name, content in ((RECORD, {**found.record, "command": command}), (EVALUATIONS, found.evaluated)):
        write_json(entry / name, without_folders(content))
    if (run / ROW_LOSSES).is_file():
        write_atomic(entry / ROW_LOSSES, (run / ROW_LOSSES).read_bytes())


def without_folders(value: Any) -> Any:
    """Return a JSON value with every absolute path shortened to its last part."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return Path(value).name
    return value


def page(folder: Path) -> str:
    """Return the page of the entries in `folder`: those with comparable losses together, the lowest loss first."""
    runs = [load_run(path.parent, curves=False) for path in sorted(folder.glob(f"*/{RECORD}"))]
    tracks: list[list[RunData]] = []
    for run in sorted(runs, key=lambda run: run.get("metrics.validation_loss")):
        track = next((track for track in tracks if not data_refusals([track[0], run])), None)
        if track is None:
            tracks.append([run])
        else:
            track.append(run)
    tracks.sort(key=lambda track: _title(track[0]))
    sections = [f"## {_title(track[0])}\n\n{_table(track)}{_commands(track)}" for track in tracks]
    return _INTRODUCTION + "\n".join(sections) + _PUBLISHED + _SUBMISSION


def _title(run: RunData) -> str:
    rows = count(run.get("metrics.validation_rows"))
    return f"{run.get('data.name')}, {run.get('config.objective.name')}, {rows} held-out rows"


def _table(runs: list[RunData]) -> str:
    header = (
        "run", "date", "hardware", "budget", "recipes", "parameters", "tokens", "loss, nats", "BLiMP", "GLUE", "CPU of "
        "others",
    )  # fmt: skip
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * 5}{' ---: |' * (len(header) - 5)}"]
    for run in runs:
        cells = (
            run.path.name,
            f"{date(run):%Y-%m-%d}",
            _hardware(run),
            budget_text(run),
            "+".join(run.get("recipes") or ["-"]),
            short_count(run.get("parameters")),
            short_count(run.get("tokens")),
            decimal(run.get("metrics.validation_loss"), 3),
            _minimal_pairs(run),
            _glue(run),
            percent(run.get("others_cpu_share")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _commands(runs: list[RunData]) -> str:
    commands = "\n".join(f"{run.get('command')}  # {run.path.name}" for run in runs)
    return f"\n```bash\n{commands}\n```\n"


def _hardware(run: RunData) -> str:
    gpus = run.get("environment.gpus") or []
    if gpus:
        return f"{len(gpus)} x {gpus[0]}"
    threads = run.get("environment.threads")
    return f"{count(threads)} threads of {run.get('environment.cpu')}"


def _minimal_pairs(run: RunData) -> str:
    return decimal((run.evaluated.get("minimal-pairs") or {}).get("overall"), 1)


def _glue(run: RunData) -> str:
    """Return the scores of each fine-tuning protocol by task, and their mean."""
    parts = []
    for name, row in run.evaluated.items():
        scores: dict[str, tuple[str, float]] = {}  # by task, its main metric
        for number in row.get("numbers", []):
            scores.setdefault(number["task"], (number["title"], number["median"]))
        if scores:
            found = ", ".join(f"{title} {value:.1f}" for title, value in scores.values())
            parts.append(f"{name}: {found}; mean {statistics.fmean(value for _, value in scores.values()):.1f}")
    return ". ".join(parts) or "-"


if __name__ == "__main__":
    main()
