"""Tables and short texts of the report, from recorded values only."""

from __future__ import annotations

from typing import Any

from cram_composer.analysis.html.tables import Table, Tile
from cram_composer.analysis.report.configuration import value_text
from cram_composer.analysis.runs.run import RunData
from cram_composer.analysis.runs.table import budget_text
from cram_composer.config.formatting import (
    NOT_MEASURED,
    NOT_RECORDED,
    count,
    decimal,
    duration,
    is_number,
    percent,
    ratio,
    short_count,
)
from cram_composer.runs.folder import DISTURBED_SHARE

LEDGER_TEXTS = {
    "compile": "torch.compile",
    "train": "forward, backward, optimizer",
    "data": "waiting for a batch",
    "eval": "evaluation in the training loop",
    "checkpoint": "writing checkpoints",
    "lost": "work after the last checkpoint before a kill",
    "setup": "imports, model construction, data set checks",
    "data_build": "building the data set",
    "final_checkpoint": "checkpoint of the finished model",
    "final_eval": "evaluation of the finished model",
    "export": "Hugging Face folder",
    "upload": "copying to object storage",
}


def headline(run: RunData) -> list[Tile]:
    """Headline numbers."""
    loss, baseline = run.get("metrics.validation_loss"), run.get("data.unigram_validation_nats")
    against = f"unigram baseline {decimal(baseline)}"
    if is_number(loss) and is_number(baseline):
        against += f": {decimal(abs(baseline - loss))} {'better' if loss < baseline else 'worse'}"
    stall, total = run.get("ledger.inside.data"), run.get("ledger.inside_total")
    bits = run.get("metrics.validation_bits_per_token")
    devices, energy = run.get("world_size"), run.get("energy.joules")
    return [
        Tile("Held-out loss", _unit(decimal(loss), "nats/token"), against),
        *(
            Tile(f"Held-out loss of {name}", _unit(decimal(of_set["loss"]), "nats/token"), "")
            for name, of_set in (run.get("metrics.held_out") or {}).items()
        ),
        Tile(
            "Held-out accuracy",
            percent(run.get("metrics.validation_accuracy")),
            f"of masked tokens; {decimal(bits)} bits/token" if is_number(bits) else "of masked tokens",
        ),
        Tile("Tokens", short_count(run.get("tokens")), f"in {count(run.get('steps'))} steps"),
        Tile(
            "Tokens per second",
            short_count(run.get("tokens_per_second")),
            f"data stall {percent(ratio(stall, total))} of the time",
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
    if run.get("budget.mode") == "replay":
        return f"replay of {count(run.get('budget.steps'))} recorded steps, no clock"
    if is_number(seconds := run.get("budget.seconds")):
        return f"of {duration(seconds)}: {percent(ratio(spent, seconds), 2)}"
    limits = budget_text(run)
    return "" if limits == NOT_MEASURED else f"limit: {limits}"


def notes(run: RunData) -> list[str]:
    """Notes on interruptions, skipped steps and damaged lines."""
    lines = []
    if start := run.get("init_from"):
        lines.append(
            f"Not from scratch: the run starts from the weights of {start.get('path')}, so it does not keep the rules "
            "of a cram."
        )
    others = run.get("others_cpu_share")
    if is_number(others) and others > DISTURBED_SHARE:
        lines.append(f"Other processes took {percent(others)} of the CPU time; alone, the run would be faster.")
    if run.get("status") == "running":
        progress = run.trace["progress"][-1] if run.steps else 0.0
        lines.append(
            "This run has not finished: it is still training, or was killed and not resumed. The page covers the "
            f"first {percent(progress)} of its budget."
        )
    elif run.get("reason"):
        lines.append(f"Reason for the end: {run.get('reason')}.")
    if is_number(skipped := run.get("steps_skipped")) and skipped > 0:
        lines.append(f"{count(skipped)} steps with a non-finite loss or gradient were skipped.")
    if run.unreadable_lines:
        lines.append(f"{count(run.unreadable_lines)} damaged lines of trace.jsonl or metrics.jsonl were ignored.")
    return lines


def ledger_tables(run: RunData) -> list[Table]:
    """Seconds inside and outside the budget with their shares of the sum, and an independent clock for comparison."""
    total, wall = run.get("ledger.inside_total"), run.get("ledger.wall_seconds")
    rows = {
        side: [
            (name.replace("_", " "), LEDGER_TEXTS.get(name, ""), decimal(seconds, 2), percent(ratio(seconds, total), 2))
            for name, seconds in (run.get(f"ledger.{side}") or {}).items()
        ]
        for side in ("inside", "outside")
    }
    rows["inside"].append(("sum", "", decimal(total, 2), percent(ratio(total, total), 2)))
    rows["inside"].append(
        ("wall-clock", "the training loop by an independent clock", decimal(wall, 2), percent(ratio(wall, total), 2))
    )
    columns = ("Phase", "Meaning", "Seconds")
    return [
        Table("Inside the budget", (*columns, "Share"), rows["inside"], numeric=(2, 3), total_rows=2),
        Table("Outside the budget", (*columns, "Of inside"), rows["outside"], numeric=(2, 3)),
    ]


def environment_tables(run: RunData) -> list[Table]:
    """Machine, kernels and library versions."""
    environment = dict(run.get("environment") or {})
    libraries = environment.pop("libraries", None) or {}
    machine = [(key.replace("_", " "), _joined(value)) for key, value in environment.items()]
    kernels = [(name.replace("_", " "), _joined(kernel)) for name, kernel in (run.get("kernels") or {}).items()]
    return [
        Table("Machine", ("", "Value"), machine),
        Table("Kernels", ("Part", "Kernel"), kernels),
        Table("Libraries", ("Library", "Version"), [(name, str(version)) for name, version in libraries.items()]),
    ]


def _joined(value: Any) -> str:
    if value is None:
        return NOT_RECORDED
    return ", ".join(map(value_text, value)) or "none" if isinstance(value, list) else value_text(value)


def attempts_table(run: RunData) -> Table:
    """Attempts of the run, more than one if it was interrupted and resumed."""
    rows = [
        (
            str(number),
            count(attempt.get("started_at_step")),
            count(attempt.get("ended_at_step")),
            str(attempt.get("reason") or NOT_RECORDED),
        )
        for number, attempt in enumerate(run.get("attempts") or [], start=1)
    ]
    return Table("Attempts", ("Attempt", "First step", "Steps at the end", "Status"), rows, numeric=(1, 2))


def evaluation_tables(run: RunData) -> list[tuple[Table, list[str]]]:
    """Medians with their spread over seeds, averages and notes, for each fine-tuning protocol."""
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
    """Masked sentences with the model's top predictions and their probabilities."""
    return [
        (fill["sentence"], [(token, percent(probability)) for token, probability in fill["predictions"]])
        for fill in run.get("metrics.fills") or []
    ]


def comparison(runs: list[RunData]) -> Table:
    """Headline numbers of several runs, one row each."""
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
    columns = (
        "Held-out loss, nats",
        "Unigram baseline, nats",
        "Accuracy",
        "Tokens",
        "Tokens/s",
        "Parameters",
        "Budget used",
    )
    return Table("Runs", ("#", "Run", *columns, "Status"), rows, numeric=tuple(range(2, 9)))
