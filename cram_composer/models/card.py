"""The model card (README.md) of an exported model, written from the run's record and the data manifest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from cram_composer.config.identity import non_default_values
from cram_composer.config.layers import unflatten
from cram_composer.config.native_forms import fills_masks, native_form
from cram_composer.models.card_metadata import card_metadata, language, licences, zero_shot_numbers

# Sections of the configuration that say how the model was trained; the budget and the data are described in words.
_DETECTION = {
    "detector_loss": "loss of the detector, nats per token",
    "detected": "share of replaced tokens that it detects",
    "false_alarms": "share of other tokens that it takes for replaced",
}
_TRAINING = ("model", "objective", "optimizer", "schedule", "train", "algorithms")


def model_card(
    record: Mapping[str, Any],
    manifest: Mapping[str, Any],
    custom_code: bool,
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Return the card as Markdown with YAML front matter; facts that are absent are left out.

    Args:
        record: content of record.json.
        manifest: content of the data set's manifest.json.
        custom_code: the export contains its own code, see `export.exported_form`.
        evaluations: content of evaluations.json, if the run was evaluated.
    """
    evaluations = evaluations or {}
    parts = [
        f"---\n{card_metadata(record, manifest, evaluations, custom_code).to_yaml()}\n---",
        f"# {record['run_name']}",
        _summary(record),
        "## How to use\n\n" + _usage(record["config"], custom_code),
        "## Results\n\n" + _results(record, manifest, evaluations),
        "## How it was trained\n\n" + _training(record),
        "## Data and licence\n\n" + _data(manifest),
        "## Limits\n\n" + _limits(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(record: Mapping[str, Any]) -> str:
    start = record.get("init_from")
    origin = "from scratch" if start is None else f"from the weights of {Path(start['path']).name}, not from scratch,"
    devices = record["world_size"]
    gpus = (record["environment"].get("gpus") or [])[:1]
    where = f"{devices} x {gpus[0]}" if gpus else f"{devices} CPU process{'es' * (devices > 1)}"
    budget = record["budget"].get("seconds")
    limit = f" of a budget of {_duration(budget)}" if budget is not None else ""
    return (
        f"{_kind(record['config'])} of {record['parameters']:,} parameters, trained {origin} with "
        f"cram-composer in {_duration(record['ledger']['wall_seconds'])}{limit} on {where}."
    )


def _kind(config: Mapping[str, Any]) -> str:
    if config["objective"].get("name", "mlm") == "mlm":
        return "A masked language model (encoder)"
    return "An encoder trained by replaced-token detection, not by masked-language modelling; with its generator"


def _usage(config: Mapping[str, Any], custom_code: bool) -> str:
    trust = ", trust_remote_code=True" if custom_code else ""
    use = f"""from transformers import pipeline

model = "path/to/this/folder"  # or its name on the hub
fill = pipeline("fill-mask", model=model{trust})
print(fill(f"The river flows into the {{fill.tokenizer.mask_token}}."))"""
    if not fills_masks(config["objective"]):
        use = f"""from transformers import AutoModel, AutoModelForMaskedLM

model = "path/to/this/folder"
encoder = AutoModel.from_pretrained(model{trust})
generator = AutoModelForMaskedLM.from_pretrained(f"{{model}}/generator"{trust})  # fills masks"""
    code = f"""```python
{use}
```

`AutoModelForSequenceClassification.from_pretrained(model{trust})` starts fine-tuning, and
`sentence_transformers.SentenceTransformer(model{trust})` a model of sentence embeddings. Both need training first."""
    if not custom_code:
        return code
    changes = native_form(SimpleNamespace(**config["model"]), config["objective"])[1]
    reason = ", ".join(f"`{key}`" for key in changes) or "its architecture"
    return (
        "This folder contains the model's code; `trust_remote_code=True` allows transformers to run it. No class of "
        f"transformers computes the same because of {reason}.\n\n{code}"
    )


def _results(
    record: Mapping[str, Any], manifest: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]
) -> str:
    metrics = record.get("metrics") or {}
    accuracy = metrics.get("validation_accuracy")
    whose = "" if fills_masks(record["config"]["objective"]) else "generator's "
    rows: list[tuple[str, Any]] = [
        (f"{whose}held-out loss at 15 % [MASK], nats per token", _rounded(metrics.get("validation_loss"))),
        *((f"the same of {name}", _rounded(of_set["loss"])) for name, of_set in metrics.get("held_out", {}).items()),
        ("the same of a unigram model", _rounded(manifest["unigram_validation_nats"])),
        ("masked tokens predicted, %", None if accuracy is None else f"{100 * accuracy:.1f}"),
        *((_DETECTION[name], _rounded(value)) for name, value in metrics.get("detection", {}).items()),
    ]
    notes = []
    for protocol, row in evaluations.items():
        rows += [(f"{protocol}: {number['title']}", f"{number['median']:.1f}") for number in row.get("numbers", [])]
        rows += [
            (f"{protocol}: {name}", f"{mean['mean']:.1f}")
            for name, mean in row.get("averages", {}).items()
            if mean["mean"] is not None
        ]
        rows += [(f"{protocol}: {name}", _rounded(value)) for _, name, value in zero_shot_numbers(row)]
        notes += [f"{protocol}: {note}." for note in row.get("notes", [])]
    return "\n\n".join([_table(("measure", "value"), rows), *notes])


def _training(record: Mapping[str, Any]) -> str:
    changed = {key: v for key, v in non_default_values(record["config"]).items() if key.partition(".")[0] in _TRAINING}
    settings = {"recipes": record["recipes"], "seed": record["config"]["seed"], **unflatten(changed)}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    spent = ", ".join(f"{name} {_duration(s)}" for name, s in record["ledger"]["inside"].items() if s and s >= 0.05)
    kernels = "; ".join(f"{name}: {value}" for name, value in record["kernels"].items())
    libraries = ", ".join(f"{name} {version}" for name, version in record["environment"]["libraries"].items())
    joules = (record.get("energy") or {}).get("joules")
    lines = [
        f"It was trained on {record['tokens']:,} tokens in {record['steps']:,} steps. Time in the budget: {spent}.",
        *([f"Energy: {joules / 3.6e6:.3g} kWh."] if joules is not None else []),
        "These settings differ from cram-composer's defaults:",
        f"```yaml\n{text}```",
        f"Configuration hash: `{record.get('config_hash', 'not recorded')}`. In use: {kernels}. Versions: {libraries}.",
    ]
    return "\n\n".join(lines)


def _data(manifest: Mapping[str, Any]) -> str:
    sources = [
        (source["name"], source["documents"], source["characters"], source["licence"] or "not stated")
        for source in manifest["sources"]
    ]
    stated = [name for name in licences(manifest) if name]
    train = [manifest["splits"][stream] for stream in manifest["streams"]]
    return "\n\n".join(
        (
            f"Data set `{manifest['name']}`: {sum(counts['tokens'] for counts in train):,} training tokens in rows of "
            f"{manifest['sequence_length']}, with a vocabulary of {manifest['vocab_size']:,} entries (tokenizer "
            f"sha256 `{manifest['tokenizer_sha256'][:16]}`).",
            _table(("source", "documents", "characters", "licence of the text"), sources),
            f"Licences of the texts: {'; '.join(stated)}. Whether they extend to the weights is for you to judge."
            if stated
            else "The licence of the texts is not stated; find it out before you publish the model.",
        )
    )


def _limits(manifest: Mapping[str, Any]) -> str:
    known = language(manifest)
    points = [
        f"The model has seen rows of {manifest['sequence_length']} tokens only, whatever its configuration allows.",
        *([f"Its text is in one language (`{known}`)."] if known not in (None, "multilingual") else []),
        "It reproduces the mistakes and biases of its text, and was not adjusted to be safe or fair.",
        "It fills in masks and encodes text; it does not generate text, and its embeddings need fine-tuning.",
        "Its budget limits its quality; nothing beyond the results above was measured.",
    ]
    return "\n".join(f"- {point}" for point in points)


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [header, tuple("---" for _ in header)]
    lines += [tuple(f"{c:,}" if isinstance(c, int) else str(c) for c in row) for row in rows if row[-1] is not None]
    return "\n".join("| " + " | ".join(re.sub(r"([|\\])", r"\\\1", cell) for cell in line) + " |" for line in lines)


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


def _duration(seconds: float) -> str:
    """Format seconds as 45 s, 12 min or 3.2 h, with three digits."""
    size, unit = (3600, "h") if seconds >= 7200 else (60, "min") if seconds >= 120 else (1, "s")
    return f"{seconds / size:.3g} {unit}"
