"""A few documents of every fate, for `cram data inspect`: the same few however the work was cut into partitions."""

from __future__ import annotations

from bisect import insort
from typing import Any

KEPT = ""  # the name of a fate where there is no stage and no reason
_CUT = " […] "


class Examples:
    """At most `per_reason` texts of up to `characters` characters for each stage and reason, and for what was kept.

    Those with the smallest keys stay. The key must be a hash of the document, so that they are a fair sample.
    """

    def __init__(self, per_reason: int = 20, characters: int = 600) -> None:
        self.per_reason = per_reason
        self.characters = characters
        self._pools: dict[tuple[str, str], list[tuple[int, str]]] = {}  # (stage, reason) -> sorted (key, text)

    def offer(self, stage: str, reason: str | None, text: str, key: int) -> None:
        """Propose a document that `stage` dropped for `reason`; with None, one that was kept (by all stages)."""
        fate = (KEPT, KEPT) if reason is None else (stage, reason)
        pool = self._pools.setdefault(fate, [])
        if len(pool) < self.per_reason or key <= pool[-1][0]:
            self._insert(pool, (key, shortened(text, self.characters)))

    def _insert(self, pool: list[tuple[int, str]], entry: tuple[int, str]) -> None:
        if entry not in pool:  # copies of a document tell nothing new
            insort(pool, entry)
            del pool[self.per_reason :]

    def merge(self, other: Examples) -> None:
        """Add what another partition was offered: the result is that of one pass over both."""
        for fate, entries in other._pools.items():
            pool = self._pools.setdefault(fate, [])
            for entry in entries:
                self._insert(pool, entry)

    def state(self) -> dict[str, Any]:
        """Everything, in JSON's types, for `from_state` in another process."""
        return {
            "per_reason": self.per_reason,
            "characters": self.characters,
            "pools": [[*fate, entries] for fate, entries in sorted(self._pools.items())],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Examples:
        """What `state` was called on."""
        examples = cls(state["per_reason"], state["characters"])
        for stage, reason, entries in state["pools"]:
            examples._pools[stage, reason] = [(key, text) for key, text in entries]
        return examples

    def as_dict(self) -> dict[str, Any]:
        """For examples.json: {"kept": [text, ...], "dropped": {stage: {reason: [text, ...]}}}, names sorted."""
        dropped: dict[str, dict[str, list[str]]] = {}
        for (stage, reason), entries in sorted(self._pools.items()):
            if stage != KEPT:
                dropped.setdefault(stage, {})[reason] = [text for _, text in entries]
        return {"kept": [text for _, text in self._pools.get((KEPT, KEPT), [])], "dropped": dropped}


def shortened(text: str, characters: int) -> str:
    """The text if it has no more than `characters`, else its beginning and its end, about 3 to 1."""
    if len(text) <= characters:
        return text
    room = max(characters - len(_CUT), 0)
    end = room // 4
    return text[: room - end] + _CUT + text[len(text) - end :]


def removed_span(text: bytes, start: int, end: int, characters: int = 600) -> str:
    """Bytes [start, end) of a UTF-8 text, in ⟦ ⟧, with the text around them; about `characters` in all.

    The span must begin and end between characters.
    """
    context = characters // 6
    # Four bytes are the longest character; what is torn at the outer ends is left out.
    before = text[max(start - 4 * context, 0) : start].decode("utf-8", "ignore")[-context:]
    after = text[end : end + 4 * context].decode("utf-8", "ignore")[:context]
    return f"{before}⟦{shortened(text[start:end].decode(), characters - 2 * context)}⟧{after}"
