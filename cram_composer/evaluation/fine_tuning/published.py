"""Published results for comparison in GLUE tables: development sets, in percent, as their authors report them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PublishedResult:
    """The nine-number mean, the numbers by "task" or "task split" where published, and the source."""

    name: str
    mean: float
    source: str
    numbers: dict[str, float] = field(default_factory=dict)


_CRAMMING = "Geiping and Goldstein 2022, arXiv 2212.14034"


def _table_3_numbers(*values: float) -> dict[str, float]:
    """Assign numbers to tasks in the order of the paper's table 3."""
    columns = (
        "mnli validation_matched", "mnli validation_mismatched", "sst2", "stsb", "rte", "qnli", "qqp", "mrpc", "cola",
    )  # fmt: skip
    return dict(zip(columns, values, strict=True))


PUBLISHED = (
    PublishedResult("no pretraining", 45.5, f"{_CRAMMING}, as reported there"),
    PublishedResult(
        "crammed BERT, one RTX A6000, 24 h",
        78.6,
        f"{_CRAMMING}, table 3 of version 1",
        _table_3_numbers(83.9, 84.1, 92.2, 84.6, 53.8, 89.5, 87.3, 87.5, 44.5),
    ),
    PublishedResult("crammed BERT, one RTX A6000, 24 h", 80.7, f"{_CRAMMING}, version 2"),
    PublishedResult(
        "BERT-base, fully trained",
        80.9,
        f"{_CRAMMING}, table 3: the published checkpoint, fine-tuned by the same protocol",
        _table_3_numbers(83.2, 83.4, 91.9, 86.7, 59.2, 90.6, 87.7, 89.3, 56.5),
    ),
    PublishedResult("RoBERTa-base, fully trained", 85.1, f"{_CRAMMING}, as reported there"),
)
