"""Metadata of a model card for the Hugging Face hub: licence, language, data sets and results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cram_composer.config.native_forms import fills_masks

# Identifiers of the hub for licences of text. Any other licence is named in words.
_HUB_LICENCES = {
    *("apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "gfdl", "unlicense", "wtfpl"),
    *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
    *("cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
    *("odc-by", "odbl", "pddl", "c-uda", "cdla-permissive-2.0", "cdla-sharing-1.0"),
}
_DATASETS = {"glue": "nyu-mll/glue", "superglue": "aps/super_glue"}


def card_metadata(
    record: Mapping[str, Any],
    manifest: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    custom_code: bool,
) -> ModelCardData:
    """Return the front matter of a card; see `model_card` for the arguments."""
    is_masked_lm = record["config"]["objective"].get("name", "mlm") == "mlm"
    hub_sources = [source["dataset"] for source in manifest["sources"] if source.get("revision")]
    return ModelCardData(
        language=language(manifest),
        **_licence(licences(manifest)),
        library_name="transformers",
        pipeline_tag="fill-mask" if fills_masks(record["config"]["objective"]) else "feature-extraction",
        tags=[
            "masked-lm" if is_masked_lm else "replaced-token-detection",
            "cramming",
            *(["custom_code"] if custom_code else []),
        ],
        datasets=list(dict.fromkeys(hub_sources)) or None,
        model_name=record["run_name"],
        eval_results=[*_held_out(record, manifest), *_evaluated(evaluations)] or None,
    )


def licences(manifest: Mapping[str, Any]) -> list[str | None]:
    """Return the licences of a data set's sources, each once; None stands for one that is not stated."""
    return list(dict.fromkeys(source["licence"] for source in manifest["sources"]))


def language(manifest: Mapping[str, Any]) -> str | None:
    """Return the code of the language of a data set; None if it is unknown."""
    if manifest.get("language"):
        return str(manifest["language"])
    english = all(source["kind"] == "starter" for source in manifest["sources"])
    filtered = any(stage["name"] == "language" for stage in manifest["stages"])  # which keeps English
    return "en" if english or filtered else None


def _licence(names: list[str | None]) -> dict[str, Any]:
    """Return the hub's fields for licences; none if one is not stated, because the others would mislead."""
    stated = [name for name in names if name]
    if len(stated) < len(names) or not stated:
        return {}
    known = [_hub_licence(name) for name in stated]
    if None in known:
        return {"license": "other", "license_name": "-and-".join(map(_slug, stated))}
    unique = list(dict.fromkeys(known))
    return {"license": unique[0] if len(unique) == 1 else unique}


def _slug(name: str) -> str:
    """Shorten a licence to small letters, digits, dots and dashes, without a remark in parentheses."""
    return re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\(.*?\)", "", name.lower())).strip("-.")


def _hub_licence(name: str) -> str | None:
    """Return the hub's identifier of a licence, such as odc-by of "ODC-By 1.0"; None if it has none."""
    slug = _slug(name)
    return next((found for found in (slug, re.sub(r"-v?[\d.]+$", "", slug)) if found in _HUB_LICENCES), None)


def _held_out(record: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[EvalResult]:
    metrics = (record.get("metrics") or {}) if fills_masks(record["config"]["objective"]) else {}
    for key, kind, name in (
        ("validation_loss", "loss", "Masked-LM loss at 15 % [MASK], nats per token"),
        ("validation_accuracy", "accuracy", "Masked-LM accuracy at 15 % [MASK]"),
    ):
        if metrics.get(key) is not None:
            yield EvalResult(
                task_type="fill-mask",
                dataset_type=manifest["name"],
                dataset_name=f"{manifest['name']}, held-out text",
                dataset_split="validation",
                metric_type=kind,
                metric_name=name,
                metric_value=round(metrics[key], 6),
            )


def _evaluated(evaluations: Mapping[str, Mapping[str, Any]]) -> Iterator[EvalResult]:
    """Yield the results of `cram eval`: per cent of every task, and the one number of every other protocol."""
    for protocol, row in evaluations.items():
        for number in row.get("numbers", []):
            yield EvalResult(
                task_type="text-classification",
                dataset_type=_DATASETS.get(row["benchmark"], row["benchmark"]),
                dataset_name=f"{row['benchmark']} {number['title']}",
                dataset_config=number["task"],
                dataset_split=number["split"],
                metric_type=number["metric"],
                metric_name=f"{number['title']}, median over seeds, %",
                metric_value=round(number["median"], 2),
            )
        for kind, name, value in zero_shot_numbers(row):
            yield EvalResult(
                task_type="fill-mask",
                dataset_type=protocol,
                dataset_name=protocol,
                metric_type=kind,
                metric_name=name,
                metric_value=round(value, 4),
            )


def zero_shot_numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yield metric, name and value of a row of `cram eval` without fine-tuning."""
    if row.get("kind") == "minimal-pairs" and row.get("overall") is not None:
        yield "accuracy", "minimal pairs, mean accuracy, % (chance: 50)", row["overall"]
    if row.get("kind") == "masked-words" and row.get("text"):
        yield "bits_per_character", "masked words, bits per character", row["text"]["bits_per_character"]
