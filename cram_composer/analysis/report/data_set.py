"""Tables that describe a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cram_composer.analysis.html.tables import Table
from cram_composer.analysis.report.configuration import value_text
from cram_composer.config.formatting import NOT_RECORDED, count, percent, ratio


def data_set_tables(data: Mapping[str, Any]) -> list[Table]:
    """Properties, splits and sources of a data set, from its manifest or the summary in a record."""
    facts = [
        (key.replace("_", " "), value_text(value)) for key, value in data.items() if not isinstance(value, (dict, list))
    ]
    splits = data.get("splits") or {}
    counts = [
        (name, *(count(split.get(name)) for split in splits.values()))
        for name in ("documents", "rows", "tokens", "characters")
    ]
    shares = [
        (name, *(percent(ratio(split.get(key), split.get("tokens")), 3) for split in splits.values()))
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
