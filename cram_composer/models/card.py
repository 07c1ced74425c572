"""The model card (README.md) of an exported model, written from the run's record and the data manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cram_composer.config.native_forms import native_form

Row = tuple[str, Any]


def model_card(record: dict[str, Any], manifest: Mapping[str, Any], custom_code: bool) -> str:
    """Return the card as Markdown with YAML front matter; facts that are absent are left out.

    Args:
        record: content of record.json.
        manifest: content of the data set's manifest.json.
        custom_code: the export contains its own code, see `export.exported_form`.
    """
    model = record["config"]["model"]
    parts = [
        _front_matter(custom_code),
        f"# {record['run_name']}",
        _summary(record),
        "## How to load\n\n" + _usage(record["config"], custom_code),
        "## Results\n\n" + _table(("metric", "value"), _results(record, manifest)),
        "## Recipe\n\n" + _table(("setting", "value"), _recipe(record)),
        "## Data\n\n" + _data(manifest),
        "## Time spent\n\n" + _table(("part", "seconds"), _ledger(record["ledger"])),
        "## Environment\n\n" + _table(("item", "value"), _environment(record)),
        "## Limits\n\n" + _limits(record, manifest, model),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(custom_code: bool) -> str:
    tags = ["masked-lm", "cramming", *(["custom_code"] if custom_code else [])]
    lines = ["library_name: transformers", "pipeline_tag: fill-mask", "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _summary(record: dict[str, Any]) -> str:
    budget = record["budget"].get("seconds")
    spent = f" out of a budget of {_number(budget)} s" if budget is not None else ""
    start = record.get("init_from")
    origin = "from scratch" if start is None else f"from the weights of {Path(start['path']).name}, not from scratch,"
    return (
        f"A masked language model of {_number(record['parameters'])} parameters, trained {origin} with "
        f"cram-composer on {_number(record['tokens'])} tokens in {_number(record['steps'])} steps and "
        f"{_number(record['ledger']['wall_seconds'])} s of training{spent}, on {record['world_size']} device(s)."
    )


def _usage(config: Mapping[str, Any], custom_code: bool) -> str:
    trust = ", trust_remote_code=True" if custom_code else ""
    code = f"""```python
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

folder = "path/to/this/folder"
model = AutoModelForMaskedLM.from_pretrained(folder{trust})
tokenizer = AutoTokenizer.from_pretrained(folder{trust})
print(pipeline("fill-mask", model=model, tokenizer=tokenizer)(f"The river flows into the {{tokenizer.mask_token}}."))
```"""
    changes = native_form(SimpleNamespace(**config["model"]), config["objective"].get("shift", False))[1]
    reason = ", ".join(f"`{key}`" for key in changes) or "its architecture"
    note = (
        "This folder contains the model's code; `trust_remote_code=True` allows transformers to run it. No class of "
        f"transformers computes the same because of {reason}."
    )
    return f"{note}\n\n{code}" if custom_code else code


def _results(record: dict[str, Any], manifest: Mapping[str, Any]) -> list[Row]:
    metrics = [(name.replace("_", " "), value) for name, value in (record.get("metrics") or {}).items()]
    return [*metrics, ("unigram model on the validation split, nats per token", manifest["unigram_validation_nats"])]


def _recipe(record: dict[str, Any]) -> list[Row]:
    config = record["config"]
    rows: list[Row] = [("recipes", ", ".join(record["recipes"]) or "none"), ("seed", config["seed"])]
    for section in ("model", "objective", "optimizer", "schedule", "train", "algorithms"):
        rows += [(f"{section}.{key}", value) for key, value in config[section].items()]
    return [*rows, *((f"{name} in use", value) for name, value in record["kernels"].items())]


def _data(manifest: Mapping[str, Any]) -> str:
    rows = [(f"{split}, {key}", value) for split, facts in manifest["splits"].items() for key, value in facts.items()]
    sources = [
        (source["name"], source["kind"], source["documents"], source["characters"], source["licence"])
        for source in manifest["sources"]
    ]
    return "\n\n".join(
        (
            f"Data set `{manifest['name']}`: rows of {manifest['sequence_length']} tokens, vocabulary of "
            f"{_number(manifest['vocab_size'])} tokens, tokenizer sha256 `{manifest['tokenizer_sha256']}`.",
            _table(("source", "kind", "documents", "characters", "licence"), sources),
            _table(("split", "count"), rows),
        )
    )


def _ledger(ledger: dict[str, Any]) -> list[Row]:
    inside = [(f"{name} (in the budget)", seconds) for name, seconds in ledger["inside"].items()]
    outside = [(f"{name} (outside the budget)", seconds) for name, seconds in ledger["outside"].items()]
    return [*inside, ("sum in the budget", ledger["inside_total"]), *outside]


def _environment(record: dict[str, Any]) -> list[Row]:
    environment = record["environment"]
    rows = [(key.replace("_", " "), environment.get(key)) for key in ("git_revision", "python", "platform", "cpu")]
    gpus = ", ".join(map(str, environment.get("gpus") or [])) or None
    libraries = ", ".join(f"{name} {version}" for name, version in environment["libraries"].items())
    energy = record.get("energy") or {}
    return [*rows, ("gpus", gpus), ("libraries", libraries), ("energy, joules", energy.get("joules"))]


def _limits(record: dict[str, Any], manifest: Mapping[str, Any], model: dict[str, Any]) -> str:
    points = [
        f"The model was trained on rows of {manifest['sequence_length']} tokens and has never seen longer inputs.",
        "The model was trained only on the sources listed above and reproduces their mistakes and biases.",
        "The training budget limits the quality. Nothing beyond the results above was measured.",
    ]
    return "\n".join(f"- {point}" for point in points)


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [header, tuple("---" for _ in header)]
    lines += [tuple(map(_number, row)) for row in rows if row[-1] is not None]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: Any) -> str:
    """Format integers with thousands separators and floats with six significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
