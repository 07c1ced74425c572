"""What a stage did to the documents it was given, as numbers that add up over partitions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class StageCounts:
    """Documents and characters that a stage was given and let through, and how many documents it touched and why."""

    name: str
    documents_in: int = 0
    documents_out: int = 0
    characters_in: int = 0
    characters_out: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def merge(self, other: StageCounts) -> None:
        """Add what the same stage did to other documents."""
        if other.name != self.name:
            raise ValueError(f"counts of stage {other.name} cannot be added to those of {self.name}")
        self.documents_in += other.documents_in
        self.documents_out += other.documents_out
        self.characters_in += other.characters_in
        self.characters_out += other.characters_out
        for reason, documents in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + documents

    def as_dict(self) -> dict[str, Any]:
        """For manifest.json; reasons sorted, so that the order in which partitions were merged does not show."""
        return {**vars(self), "reasons": dict(sorted(self.reasons.items()))}
