"""Result tables of an evaluation, a row per model, as JSON and as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cram_composer.analysis.console import table_lines
from cram_composer.config.schema.evaluation import FineTuningProtocol, ProtocolConfig, TaskSettingsConfig
from cram_composer.evaluation.fine_tuning.fine_tune import task_settings
from cram_composer.evaluation.fine_tuning.published import PUBLISHED
from cram_composer.evaluation.fine_tuning.results import IRRELEVANT_TO_SCORES, Result, averages
from cram_composer.evaluation.tasks.benchmarks import tasks_of
from cram_composer.evaluation.tasks.glue import GLUE
from cram_composer.evaluation.tasks.task import Task

_SHORT = {
    "validation": "", "validation_matched": "m", "validation_mismatched": "mm", "test": "",
    "matthews": "MCC", "accuracy": "acc", "f1": "F1", "macro_f1": "F1", "pearson": "r", "spearman": "rho",
    "span_f1": "F1", "span_precision": "P", "span_recall": "R",
    "cosine_spearman": "rho", "ndcg@10": "nDCG@10", "mrr@10": "MRR@10",
    "exact_match": "EM", "choice_accuracy": "EM", "choice_credit": "F1",
}  # fmt: skip


def model_row(
    protocol: FineTuningProtocol,
    name: str,
    model_hash: str,
    results: Sequence[Result],
    row_length: int,
    selected: Mapping[str, TaskSettingsConfig] | None = None,
) -> dict[str, Any]:
    """Build a model's row of the table.

    Args:
        protocol: the requested protocol.
        name: name of the model.
        model_hash: hash of the model.
        results: results of the model under this protocol.
        row_length: row length that the model supports, at most the protocol's.
        selected: settings by task that the protocol's grid gave this model.

    Returns:
        JSON: model, model_hash, `numbers` (a list of task, title, split, metric, median, low, high, values by seed,
        partial), `averages` by name with the missing tasks, `selected` settings by task, and `notes` on deviations from
        the protocol.
    """
    numbers = []
    for task in _tasks(protocol):
        of_task = sorted((r for r in results if r.task == task.name), key=lambda r: r.seed)
        if not of_task:
            continue
        for split in task.scored:
            for metric in task.metrics:
                values = {str(r.seed): r.scores[split][metric] for r in of_task}
                numbers.append(
                    {
                        "task": task.name,
                        "title": " ".join(
                            filter(None, (task.title, _SHORT.get(split, split), _SHORT.get(metric, metric)))
                        ),
                        "split": split,
                        "metric": metric,
                        "median": statistics.median(values.values()),
                        "low": min(values.values()),
                        "high": max(values.values()),
                        "seeds": values,
                        "partial": sorted({part for r in of_task for part in r.partial}),
                    }
                )
    return {
        "model": name,
        "model_hash": model_hash,
        "protocol": protocol.name,
        "benchmark": protocol.benchmark,
        "numbers": numbers,
        "averages": averages(results, protocol),
        "selected": {task: own.model_dump(exclude_none=True) for task, own in (selected or {}).items()},
        "notes": _notes(protocol, results, row_length),
    }


_REPORTED_ELSEWHERE = (*IRRELEVANT_TO_SCORES, "mnli_start", "precision")  # grid is among the former


def _notes(protocol: FineTuningProtocol, results: Sequence[Result], row_length: int) -> list[str]:
    """List deviations from the protocol and from the rules of a cram."""
    notes = _differences_from_paper(protocol)
    if isinstance(protocol, ProtocolConfig) and protocol.grid is not None:
        share = f"{100.0 * protocol.grid.held_out:g} % of its train rows"
        notes.append(f"batch_size and lr selected for each task on {share}, which the rules of a cram forbid")
    by_task = {task.name: [r for r in results if r.task == task.name] for task in _tasks(protocol)}
    missing = [task.title for task in _tasks(protocol) if not by_task[task.name]]
    if missing:
        notes.append(f"not scored: {', '.join(missing)}")
    few = [
        f"{task.title} {len(by_task[task.name])} of {wanted}"
        for task in _tasks(protocol)
        if 0 < len(by_task[task.name]) < (wanted := task_settings(protocol, task.name).seeds)
    ]
    if few:
        notes.append(f"seeds that failed or have not run: {', '.join(few)}")
    partial = sorted({f"{tasks_of(protocol)[r.task].title} {split}" for r in results for split in r.partial})
    if partial:
        notes.append(f"without the official number of rows: {', '.join(partial)}")
    if row_length < protocol.max_length:
        notes.append(f"rows truncated to {row_length} tokens, the model's maximum, instead of {protocol.max_length}")
    if any(r.mnli_start for r in results):
        notes.append("RTE, MRPC and STS-B start from the model fine-tuned on MNLI, which the rules of a cram forbid")
    return notes


def _differences_from_paper(protocol: FineTuningProtocol) -> list[str]:
    """For GLUE, list in one line the settings that differ from the defaults, which published results use."""
    if not isinstance(protocol, ProtocolConfig) or protocol.benchmark != "glue":
        return []
    papers = ProtocolConfig()
    selected = () if protocol.grid is None else ("batch_size", "lr")
    names = [name for name in ProtocolConfig.model_fields if name not in (*_REPORTED_ELSEWHERE, *selected)]
    changed = [
        f"{name} {_format_value(getattr(protocol, name))} (published: {_format_value(getattr(papers, name))})"
        for name in names
        if getattr(protocol, name) != getattr(papers, name)
    ]
    for task, own in protocol.overrides.items():
        if own_settings := [f"{name} {_format_value(value)}" for name, value in own if value is not None]:
            changed.append(f"for {GLUE[task].title} {', '.join(own_settings)}")
    return [f"fine-tuned differently from the published rows: {'; '.join(changed)}"] if changed else []


def _format_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


def console_table(protocol: FineTuningProtocol, rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows as text; for GLUE, add published rows and how they differ."""
    titles = list(dict.fromkeys(number["title"] for row in rows for number in row["numbers"]))
    names = list(dict.fromkeys(name for row in rows for name in row["averages"]))
    cells = [["", *titles, *names]]
    for row in rows:
        found = {number["title"]: number for number in row["numbers"]}
        cells.append(
            [row["model"], *(_cell(found.get(title)) for title in titles), *(_mean(row, name) for name in names)]
        )
    shared = [note for note in rows[0]["notes"] if all(note in row["notes"] for row in rows)] if rows else []
    notes = shared + [f"{row['model']}: {note}" for row in rows for note in row["notes"] if note not in shared]
    notes += [f"{row['model']}: {_selected(protocol, row['selected'])}" for row in rows if row["selected"]]
    if protocol.benchmark == "glue":
        keys = {number["title"]: _published_key(number) for row in rows for number in row["numbers"]}
        for one in PUBLISHED:
            shown = [f"{one.numbers[keys[title]]:.1f}" if keys[title] in one.numbers else "" for title in titles]
            means = [f"{one.mean:.1f}" if name == "nine-number mean" else "" for name in names]
            cells.append([one.name, *shown, *means])
        notes += _published_notes(protocol, rows)
    legend = "median over seeds (lowest to highest); * a split without the official number of rows; "
    return "\n".join([*table_lines(cells, right=range(1, len(cells[0]))), "", legend + _legend(protocol), *notes])


def _selected(protocol: FineTuningProtocol, selected: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the settings that a grid gave a model."""
    told = []
    for task, own in selected.items():
        values = ", ".join(f"{name} {_format_value(value)}" for name, value in own.items())
        told.append(f"for {tasks_of(protocol)[task].title} {values}")
    return f"selected {'; '.join(told)}"


def _legend(protocol: FineTuningProtocol) -> str:
    if not isinstance(protocol, ProtocolConfig):
        return (
            "in percent. acc: accuracy; F1: macro F1, or that of entities with precision P and recall R; "
            "r: Pearson's, rho: Spearman's correlation; nDCG@10, MRR@10: retrieval, see the documentation"
        )
    if protocol.benchmark != "glue":
        return "each task counts with the mean of its numbers"
    left_out = [GLUE[name].title for name in protocol.not_averaged]
    without = f"; without {', '.join(left_out)}" if left_out else ""
    return (
        "nine-number mean: as in the paper, with both splits of MNLI and the first metric of every task; "
        f"eight-task mean: the mean of each task's numbers{without}"
    )


def _published_notes(protocol: FineTuningProtocol, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Describe the published rows and how they differ from these."""
    lines = [f"{one.name} ({one.mean:.1f}): {one.source}" for one in PUBLISHED]
    lines.append("published rows: all eight tasks, the median of 5 seeds")
    if protocol.seeds != 5:
        lines[-1] += f"; this evaluation: {protocol.seeds} seed{'s' * (protocol.seeds != 1)}"
    scored = {_published_key(number) for row in rows for number in row["numbers"]}
    for one in PUBLISHED:
        shared = [key for key in one.numbers if key in scored]
        if shared and len(shared) < len(one.numbers):
            tasks = ", ".join(dict.fromkeys(GLUE[key.split()[0]].title for key in shared))
            mean = statistics.fmean(one.numbers[key] for key in shared)
            lines.append(f"{one.name}: {mean:.1f} on {tasks}, the tasks scored here ({one.mean:.1f} on all)")
    return lines


def _published_key(number: dict[str, Any]) -> str:
    """Return the key of a number in PUBLISHED; only the first metric of a task has one."""
    task = GLUE[number["task"]]
    if number["metric"] != task.metrics[0]:
        return ""
    return f"{task.name} {number['split']}" if len(task.scored) > 1 else task.name


def _cell(number: dict[str, Any] | None) -> str:
    if number is None:
        return "-"
    mark = "*" if number["partial"] else ""
    return f"{number['median']:.1f}{mark} ({number['low']:.1f} to {number['high']:.1f})"


def _mean(row: dict[str, Any], name: str) -> str:
    average = row["averages"].get(name)
    if average is None or average["mean"] is None:
        return "-"
    return f"{average['mean']:.1f}" + (f" ({len(average['missing'])} missing)" if average["missing"] else "")


def _tasks(protocol: FineTuningProtocol) -> Iterable[Task]:
    return [tasks_of(protocol)[name] for name in protocol.tasks]
