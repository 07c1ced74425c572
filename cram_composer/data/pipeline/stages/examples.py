"""Example documents of every outcome, for `cram data inspect`; the same for any number of partitions."""

from __future__ import annotations

from bisect import insort
from typing import Any

KEPT = ""  # the name of the outcome without stage and reason
_ELLIPSIS = " […] "


class Examples:
    """At most `per_reason` texts of up to `characters` characters for each stage and reason, and for kept documents.

    Keeps those with the smallest keys. The key must be a hash of the document, which makes them a fair sample.
    """

    def __init__(self, per_reason: int = 20, characters: int = 600) -> None:
        self.per_reason = per_reason
        self.characters = characters
        self._pools: dict[tuple[str, str], list[tuple[int, str]]] = {}  # (stage, reason) -> sorted (key, text)

    def offer(self, stage: str, reason: str | None, text: str, key: int) -> None:
        """Offer a document that `stage` dropped for `reason`; None means that all stages kept it."""
        outcome = (KEPT, KEPT) if reason is None else (stage, reason)
        pool = self._pools.setdefault(outcome, [])
        if len(pool) < self.per_reason or key <= pool[-1][0]:
            self._insert(pool, (key, shorten(text, self.characters)))

    def _insert(self, pool: list[tuple[int, str]], entry: tuple[int, str]) -> None:
        if entry not in pool:  # skip copies of a document
            insort(pool, entry)
            del pool[self.per_reason :]

    def merge(self, other: Examples) -> None:
        """Add the examples of another partition; the result equals one pass over both."""
        for outcome, entries in other._pools.items():
            pool = self._pools.setdefault(outcome, [])
            for entry in entries:
                self._insert(pool, entry)

    def state(self) -> dict[str, Any]:
        """Return the state in JSON types, for `from_state` in another process."""
        return {
            "per_reason": self.per_reason,
            "characters": self.characters,
            "pools": [[*outcome, entries] for outcome, entries in sorted(self._pools.items())],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Examples:
        """Restore the object from its `state`."""
        examples = cls(state["per_reason"], state["characters"])
        for stage, reason, entries in state["pools"]:
            examples._pools[stage, reason] = [(key, text) for key, text in entries]
        return examples

    def as_dict(self) -> dict[str, Any]:
        """Return examples.json: {"kept": [text, ...], "dropped": {stage: {reason: [text, ...]}}}, sorted."""
        dropped: dict[str, dict[str, list[str]]] = {}
        for (stage, reason), entries in sorted(self._pools.items()):
            if stage != KEPT:
                dropped.setdefault(stage, {})[reason] = [text for _, text in entries]
        return {"kept": [text for _, text in self._pools.get((KEPT, KEPT), [])], "dropped": dropped}


def shorten(text: str, characters: int) -> str:
    """Shorten a text to `characters`, keeping its beginning and its end, about 3 to 1."""
    if len(text) <= characters:
        return text
    room = max(characters - len(_ELLIPSIS), 0)
    end = room // 4
    return text[: room - end] + _ELLIPSIS + text[len(text) - end :]


def show_removed_span(text: bytes, start: int, end: int, characters: int = 600) -> str:
    """Show bytes [start, end) of a UTF-8 text in ⟦ ⟧ with the surrounding text, about `characters` in all.

    The span must begin and end between characters.
    """
    context = characters // 6
    # A character has at most four bytes; torn ones at the outer ends are dropped.
    before = text[max(start - 4 * context, 0) : start].decode("utf-8", "ignore")[-context:]
    after = text[end : end + 4 * context].decode("utf-8", "ignore")[:context]
    return f"{before}⟦{shorten(text[start:end].decode(), characters - 2 * context)}⟧{after}"
