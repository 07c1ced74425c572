"""What the page says of a run, as tables and short texts; every value is one that the run recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cram_composer.analysis.html.formatting import (
    NOT_MEASURED,
    count,
    decimal,
    duration,
    is_number,
    percent,
    short_count,
)
from cram_composer.analysis.runs.run import RunData

NOT_RECORDED = "not recorded"
LEDGER_TEXTS = {
    "compile": "torch.compile",
    "train": "forward, backward, optimizer",
    "data": "waiting for a batch",
    "eval": "evaluation in the loop",
    "checkpoint": "writing checkpoints",
    "lost": "after the last checkpoint before a kill",
    "setup": "imports, model, data set checks",
    "data_build": "making the data set",
    "final_checkpoint": "checkpoint of the finished model",
    "final_eval": "evaluation of the finished model",
    "export": "Hugging Face folder",
    "upload": "copies in object storage",
}


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text cells; `numeric` are the columns set flush right, `total_rows` the last rows that sum up."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numeric: tuple[int, ...] = ()
    total_rows: int = 0


def headline(run: RunData) -> list[Tile]:
    """The numbers a reader looks for first."""
    loss, baseline = run.get("metrics.validation_loss"), run.get("data.unigram_validation_nats")
    against = f"unigram baseline {decimal(baseline)}"
    if is_number(loss) and is_number(baseline):
        against += f": {decimal(abs(baseline - loss))} {'better' if loss < baseline else 'worse'}"
    stall, total = run.get("ledger.inside.data"), run.get("ledger.inside_total")
    bits = run.get("metrics.validation_bits_per_token")
    devices, energy = run.get("world_size"), run.get("energy.joules")
    return [
        Tile("Validation loss", _unit(decimal(loss), "nats/token"), against),
        Tile(
            "Validation accuracy",
            percent(run.get("metrics.validation_accuracy")),
            f"of masked tokens; {decimal(bits)} bits/token" if is_number(bits) else "of masked tokens",
        ),
        Tile("Tokens", short_count(run.get("tokens")), f"in {count(run.get('steps'))} steps"),
        Tile(
            "Tokens per second",
            short_count(run.get("tokens_per_second")),
            f"data stall {percent(_ratio(stall, total))} of the time",
        ),
        Tile("Parameters", short_count(run.get("parameters")), f"on {count(devices)} process{'es' * (devices != 1)}"),
        Tile("Budget used", duration(total), _budget_note(run, total)),
        Tile(
            "Energy",
            _unit(decimal(energy / 3600.0, 1), "Wh") if is_number(energy) else NOT_MEASURED,
            str(run.get("energy.source") or ""),
        ),
    ]


def _unit(value: str, unit: str) -> str:
    return value if value == NOT_MEASURED else f"{value} {unit}"


def _budget_note(run: RunData, spent: Any) -> str:
    seconds, tokens, steps = (run.get(f"budget.{limit}") for limit in ("seconds", "tokens", "steps"))
    if run.get("budget.mode") == "replay":
        return f"replay of {count(steps)} recorded steps, no clock"
    if is_number(seconds):
        return f"of {duration(seconds)}: {percent(_ratio(spent, seconds), 2)}"
    limits = [f"{short_count(tokens)} tokens"] * is_number(tokens) + [f"{count(steps)} steps"] * is_number(steps)
    return f"limit: {', '.join(limits)}" if limits else ""


def notes(run: RunData) -> list[str]:
    """What a reader must know before believing the numbers."""
    said = []
    if run.get("status") == "running":
        progress = run.trace["progress"][-1] if run.steps else 0.0
        said.append(
            f"This run has not ended: it is being trained, or was killed and not resumed. The page shows it as far as "
            f"its trace goes, {percent(progress)} of its budget."
        )
    elif run.get("reason"):
        said.append(f"Why it ended: {run.get('reason')}.")
    if is_number(skipped := run.get("steps_skipped")) and skipped > 0:
        said.append(f"{count(skipped)} steps had a loss or gradient that was not finite and were not applied.")
    if run.unreadable_lines:
        said.append(f"{count(run.unreadable_lines)} damaged lines of trace.jsonl or metrics.jsonl were left out.")
    return said


def ledger_tables(run: RunData) -> list[Table]:
    """Seconds inside and outside the budget, as shares of the sum inside, and that sum against another clock's."""
    total, wall = run.get("ledger.inside_total"), run.get("ledger.wall_seconds")
    rows = {
        side: [
            (name.replace("_", " "), LEDGER_TEXTS.get(name, ""), _seconds(seconds), percent(_ratio(seconds, total), 2))
            for name, seconds in (run.get(f"ledger.{side}") or {}).items()
        ]
        for side in ("inside", "outside")
    }
    difference = _ratio(total - wall, wall) if is_number(total) and is_number(wall) else None
    off = NOT_MEASURED if difference is None else f"sum {100 * difference:+.2f} %"
    rows["inside"].append(("sum", "", _seconds(total), percent(_ratio(total, total), 2)))
    rows["inside"].append(("wall-clock", "the loop by another clock", _seconds(wall), off))
    columns = ("Item", "What", "Seconds")
    return [
        Table("Inside the budget", (*columns, "Share"), rows["inside"], numeric=(2, 3), total_rows=2),
        Table("Outside the budget", (*columns, "Of inside"), rows["outside"], numeric=(2, 3)),
    ]


def _seconds(value: Any) -> str:
    return decimal(value, 2)


def configuration(run: RunData) -> tuple[Table, Table]:
    """Every key with its value and where it came from: first what something set, then what stayed at its default."""
    provenance = run.get("provenance") or {}
    rows = [(key, text(value), _origin(key, provenance)) for key, value in flatten(run.get("config") or {})]
    chosen = sorted((row for row in rows if row[2] != "default"), key=lambda row: _rank(row[2]))
    defaults = [row for row in rows if row[2] == "default"]
    header = ("Key", "Value", "From")
    return (
        Table(f"Set by the command line, a file or a recipe ({len(chosen)})", header, chosen),
        Table(f"Left at the default ({len(defaults)})", header, defaults),
    )


def differences(runs: list[RunData]) -> Table:
    """The keys in which the runs' configurations differ, a column per run."""
    flat = [dict(flatten(run.get("config") or {})) for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    rows = [
        (key, *(text(config[key]) if key in config else "—" for config in flat))
        for key in keys
        if any(key not in config or config[key] != flat[0].get(key) for config in flat)
    ]
    header = ("Key", *(f"Run {index + 1}" for index in range(len(runs))))
    return Table("Configuration keys that differ", header, rows)


def flatten(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested configuration with their dotted keys; lists and empty mappings are leaves."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value


def text(value: Any) -> str:
    """A value of a configuration as the page prints it: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _origin(key: str, provenance: dict[str, str]) -> str:
    """Where a key came from; a value set as a whole (a mapping, say) answers for all that is in it."""
    while key not in provenance and "." in key:
        key = key.rpartition(".")[0]
    return provenance.get(key, NOT_RECORDED)


def _rank(origin: str) -> int:
    if origin.startswith("recipe "):
        return 2
    return {"command line": 0, NOT_RECORDED: 3}.get(origin, 1)  # the rest are files


def data_tables(run: RunData) -> list[Table]:
    """The data set that the run trained on, in short."""
    return data_set_tables(run.get("data") or {})


def data_set_tables(data: Mapping[str, Any]) -> list[Table]:
    """What a manifest, or the summary of one, says: what the data set is, its splits, its sources."""
    facts = [(key.replace("_", " "), text(value)) for key, value in data.items() if not isinstance(value, (dict, list))]
    splits = data.get("splits") or {}
    counts = [
        (name, *(count(split.get(name)) for split in splits.values()))
        for name in ("documents", "rows", "tokens", "characters")
    ]
    shares = [
        (name, *(percent(_ratio(split.get(key), split.get("tokens")), 3) for split in splits.values()))
        for name, key in (("unknown tokens", "unk_tokens"), ("padding", "padding_tokens"))
        if key == "unk_tokens" or any(split.get(key) for split in splits.values())
    ]
    known = ("name", "kind", "documents", "characters", "licence", "files")
    one_stream = len(data.get("streams") or []) < 2
    sources = [
        (
            str(source.get("name", NOT_RECORDED)),
            ", ".join(
                [
                    str(source.get("kind", "")),
                    *(f"{k} {v}" for k, v in source.items() if k not in known and not (k == "stream" and one_stream)),
                ]
            ),
            count(source.get("documents")),
            count(source.get("characters")),
            str(source.get("licence") or NOT_RECORDED),
        )
        for source in data.get("sources") or []
    ]
    return [
        Table("Data set", ("", "Value"), facts),
        Table("Splits", ("", *splits), [*counts, *shares], numeric=tuple(range(1, len(splits) + 1))),
        Table("Sources", ("Source", "Kind", "Documents", "Characters", "Licence"), sources, numeric=(2, 3)),
    ]


def _ratio(part: Any, whole: Any) -> float | None:
    """`part` as a share of `whole`; None where either was not measured, or there is no whole yet."""
    return part / whole if is_number(part) and is_number(whole) and whole > 0 else None


def environment_tables(run: RunData) -> list[Table]:
    """What the run ran on: machine and software, kernels, library versions."""
    environment = dict(run.get("environment") or {})
    libraries = environment.pop("libraries", None) or {}
    machine = [(key.replace("_", " "), _words(value)) for key, value in environment.items()]
    kernels = [(name.replace("_", " "), _words(kernel)) for name, kernel in (run.get("kernels") or {}).items()]
    return [
        Table("Machine", ("", "Value"), machine),
        Table("Kernels", ("Part", "Kernel"), kernels),
        Table("Libraries", ("Library", "Version"), [(name, str(version)) for name, version in libraries.items()]),
    ]


def _words(value: Any) -> str:
    if value is None:
        return NOT_RECORDED
    return ", ".join(map(text, value)) or "none" if isinstance(value, list) else text(value)


def attempts_table(run: RunData) -> Table:
    """The starts of the run: one, or more where it was interrupted and resumed."""
    rows = [
        (
            str(number),
            count(attempt.get("started_at_step")),
            count(attempt.get("ended_at_step")),
            str(attempt.get("reason") or NOT_RECORDED),
        )
        for number, attempt in enumerate(run.get("attempts") or [], start=1)
    ]
    return Table("Starts of the run", ("Start", "First step", "Steps at its end", "How it ended"), rows, numeric=(1, 2))


def evaluation_tables(run: RunData) -> list[tuple[Table, list[str]]]:
    """For each protocol that the run was fine-tuned by: medians with their spread over seeds, averages, and notes."""
    made = []
    for name, row in run.evaluated.items():
        if "averages" not in row:  # nothing was fine-tuned
            continue
        rows = [
            (
                number["title"] + ("*" if number["partial"] else ""),
                f"{number['median']:.1f}",
                f"{number['low']:.1f} to {number['high']:.1f}",
                str(len(number["seeds"])),
            )
            for number in row["numbers"]
        ]
        averages = [
            (
                title,
                decimal(average["mean"], 1),
                "",
                f"{len(average['missing'])} tasks missing" * bool(average["missing"]),
            )
            for title, average in row["averages"].items()
        ]
        header = ("Number", "Median, %", "Lowest to highest", "Seeds")
        made.append(
            (Table(name, header, [*rows, *averages], numeric=(1, 2, 3), total_rows=len(averages)), row["notes"])
        )
    return made


def fills(run: RunData) -> list[tuple[str, list[tuple[str, str]]]]:
    """Masked sentences with the model's best guesses and their probabilities."""
    return [
        (fill["sentence"], [(token, percent(probability)) for token, probability in fill["predictions"]])
        for fill in run.get("metrics.fills") or []
    ]


def comparison(runs: list[RunData]) -> Table:
    """The headline numbers of several runs, a row each."""
    rows = [
        (
            str(number),
            run.name,
            decimal(run.get("metrics.validation_loss")),
            decimal(run.get("data.unigram_validation_nats")),
            percent(run.get("metrics.validation_accuracy")),
            short_count(run.get("tokens")),
            short_count(run.get("tokens_per_second")),
            short_count(run.get("parameters")),
            duration(run.get("ledger.inside_total")),
            str(run.get("status") or NOT_RECORDED),
        )
        for number, run in enumerate(runs, start=1)
    ]
    columns = ("Validation loss", "Unigram baseline", "Accuracy", "Tokens", "Tokens/s", "Parameters", "Budget used")
    return Table("The runs side by side", ("#", "Run", *columns, "Status"), rows, numeric=tuple(range(2, 9)))
