"""Counts of the documents that a stage has processed, which add up over partitions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class StageCounts:
    """Documents and characters that entered and left a stage, and documents changed or dropped by reason."""

    name: str
    documents_in: int = 0
    documents_out: int = 0
    characters_in: int = 0
    characters_out: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def merge(self, other: StageCounts) -> None:
        """Add the counts of the same stage on other documents."""
        if other.name != self.name:
            raise ValueError(f"counts of stage {other.name} cannot be added to those of {self.name}")
        self.documents_in += other.documents_in
        self.documents_out += other.documents_out
        self.characters_in += other.characters_in
        self.characters_out += other.characters_out
        for reason, documents in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + documents

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for manifest.json, with sorted reasons so that the merge order does not matter."""
        return {**vars(self), "reasons": dict(sorted(self.reasons.items()))}
