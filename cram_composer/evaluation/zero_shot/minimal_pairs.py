"""Minimal pairs: the share of pairs whose acceptable sentence the model prefers (BLiMP: Warstadt et al. 2020).

A sentence's score is its pseudo-log-likelihood (Salazar et al. 2020, arXiv 1910.14659): the sum over its tokens of the
log-probability of each when it alone is masked. The variant "within-word-l2r" (Kauf and Ivanova 2023, arXiv 2305.10588)
also masks the later tokens of the same word, so that a long word is not made likely by its own pieces.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from cram_composer.config.schema.evaluation import MinimalPairsConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.tasks.examples import read_file, read_jsonl_objects
from cram_composer.evaluation.zero_shot.masked_scoring import MaskedRow, MaskedScorer

_SENTENCES = ("sentence_good", "sentence_bad")
_GROUPS = ("field", "linguistics_term")  # keys of BLiMP that group paradigms
_NORMAL = 1.96
_SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz")


class SentencePair(NamedTuple):
    """The acceptable and the unacceptable sentence, and the file and line they come from."""

    good: str
    bad: str
    line: str


@dataclass(frozen=True)
class Paradigm:
    """One file of pairs; `groups` are the values of `field` and `linguistics_term`, if the rows have them."""

    name: str
    groups: dict[str, str]
    pairs: list[SentencePair]

    @property
    def digest(self) -> str:
        """Hash of the sentences in order."""
        sentences = [[pair.good, pair.bad] for pair in self.pairs]
        return hashlib.sha256(json.dumps(sentences).encode()).hexdigest()[:16]


def read_parts(protocol: MinimalPairsConfig, data: Path) -> list[Paradigm]:
    """Read the paradigms of a folder, one per .jsonl[.zst|.gz] file, sorted by name.

    Raises:
        CramError: no such folder, no file in it, a line that is not a pair, or two files of one paradigm.
    """
    if not data.is_dir():
        raise CramError(f"--data {data}: no such folder; pass a folder with one .jsonl file per paradigm")
    files = sorted(path for path in data.iterdir() if path.name.endswith(_SUFFIXES) and path.is_file())
    if not files:
        raise CramError(f"--data {data}: no {', '.join(_SUFFIXES)} file in this folder")
    found: dict[str, Path] = {}
    paradigms = []
    for path in files:
        paradigm = _read_paradigm(path)
        if paradigm.name in found:
            raise CramError(f"{path}: paradigm '{paradigm.name}' is already in {found[paradigm.name]}; keep one file")
        found[paradigm.name] = path
        paradigms.append(paradigm)
    return paradigms


def _read_paradigm(path: Path) -> Paradigm:
    pairs: list[SentencePair] = []
    same: dict[str, str] = {}  # values that all rows of a file share
    for number, row in read_file(path, read_jsonl_objects):
        origin = f"{path}:{number}"
        for key in _SENTENCES:
            if key not in row:
                raise CramError(
                    f"{origin}: no key '{key}' (found: {', '.join(row)}); a pair needs {', '.join(_SENTENCES)}"
                )
            if not isinstance(row[key], str) or not row[key].strip():
                raise CramError(f"{origin}: '{key}' must be a sentence, got {json.dumps(row[key])[:60]}")
        for key in ("UID", *_GROUPS):
            if row.get(key) is not None and same.setdefault(key, str(row[key])) != str(row[key]):
                raise CramError(
                    f"{origin}: {key} is '{row[key]}', but '{same[key]}' in earlier lines; split the file by {key}"
                )
        pairs.append(SentencePair(row["sentence_good"], row["sentence_bad"], origin))
    if not pairs:
        raise CramError(f"{path}: empty; it must have a pair in each line")
    name = same.pop("UID", path.name.partition(".jsonl")[0])
    return Paradigm(name, same, pairs)


def score_part(paradigm: Paradigm, scorer: MaskedScorer, protocol: MinimalPairsConfig) -> dict[str, Any]:
    """Compute the share of pairs, in percent, whose acceptable sentence has the higher score; ties count half.

    Returns:
        JSON: accuracy, pairs, ties, groups.

    Raises:
        CramError: a sentence is longer than the model's rows.
    """
    sentences = [sentence for pair in paradigm.pairs for sentence in (pair.good, pair.bad)]
    lines = [pair.line for pair in paradigm.pairs for _ in _SENTENCES]
    scores = sentence_scores(scorer, sentences, lines, protocol.score)
    good, bad = scores[::2], scores[1::2]
    ties = sum(one == other for one, other in zip(good, bad, strict=True))
    right = sum(one > other for one, other in zip(good, bad, strict=True))
    return {
        "accuracy": 100.0 * (right + 0.5 * ties) / len(good),
        "pairs": len(good),
        "ties": ties,
        "groups": paradigm.groups,
    }


def sentence_scores(scorer: MaskedScorer, sentences: Sequence[str], names: Sequence[str], kind: str) -> list[float]:
    """Compute the pseudo-log-likelihood of each sentence in nats.

    Args:
        scorer: the model.
        sentences: sentences to score.
        names: names of the sentences for errors.
        kind: "pll" or "within-word-l2r".

    Raises:
        CramError: a sentence is longer than the model's rows.
    """
    rows: list[MaskedRow] = []
    counts = []
    for sentence, name in zip(sentences, names, strict=True):
        made = list(masked_rows(scorer.tokenizer, sentence, MASKED_POSITIONS[kind]))
        if made and len(made[0].input_ids) > scorer.max_length:
            raise CramError(
                f"{name}: the sentence has {len(made[0].input_ids)} tokens, the model reads at most {scorer.max_length}"
            )
        rows += made
        counts.append(len(made))
    scores = iter(scorer(rows))
    return [sum(next(scores)[0] for _ in range(count)) for count in counts]


def masked_rows(
    tokenizer: PreTrainedTokenizerBase, sentence: str, hidden: Callable[[int, list[int | None]], list[int]]
) -> Iterator[MaskedRow]:
    """Yield a row for every token except special tokens."""
    encoded = tokenizer(sentence, return_special_tokens_mask=True)
    ids, words = encoded["input_ids"], encoded.word_ids()
    for position, special in enumerate(encoded["special_tokens_mask"]):
        if not special:
            masked = list(ids)
            for other in hidden(position, words):
                masked[other] = tokenizer.mask_token_id
            yield MaskedRow(tuple(masked), (position,), (ids[position],))


def _rest_of_word(position: int, words: list[int | None]) -> list[int]:
    if words[position] is None:
        return [position]
    return [other for other in range(position, len(words)) if words[other] == words[position]]


# The positions to mask when a position is predicted, given the word of each token.
MASKED_POSITIONS: dict[str, Callable[[int, list[int | None]], list[int]]] = {
    "pll": lambda position, words: [position],
    "within-word-l2r": _rest_of_word,
}


def summarize(protocol: MinimalPairsConfig, scored: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of a model's row.

    They are `overall`, the mean over paradigms, `groups`, means by group, and `margins`, half of the 95 % interval of
    each mean in the same structure. Pairs are the sample: the interval covers other pairs of these paradigms.

    Args:
        protocol: the protocol.
        scored: results of `score_part` by paradigm.
    """
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for found in scored.values():
        for key, value in found["groups"].items():
            groups.setdefault(key, {}).setdefault(value, []).append(found)

    def by_group(summary: Callable[[Sequence[dict[str, Any]]], float]) -> dict[str, dict[str, float]]:
        return {
            key: {value: summary(of_value) for value, of_value in sorted(of_key.items())}
            for key, of_key in groups.items()
        }

    everything = list(scored.values())
    return {
        "overall": _mean_accuracy(everything) if scored else None,
        "groups": by_group(_mean_accuracy),
        "margins": {"overall": _margin(everything) if scored else None, "groups": by_group(_margin)},
        "paradigms": scored,
        "score": protocol.score,
    }


def _mean_accuracy(paradigms: Sequence[dict[str, Any]]) -> float:
    return statistics.fmean(found["accuracy"] for found in paradigms)


def _margin(paradigms: Sequence[dict[str, Any]]) -> float:
    """Return half of the 95 % interval of the mean over paradigms, in percent.

    The variance of a paradigm is binomial over its pairs, with two right and two wrong ones added (Agresti and Coull
    1998), so that it is not zero where all are right.
    """
    variance = 0.0
    for found in paradigms:
        pairs = found["pairs"] + 4
        share = (found["accuracy"] / 100.0 * found["pairs"] + 2) / pairs
        variance += share * (1.0 - share) / pairs
    return 100.0 * _NORMAL * math.sqrt(variance) / len(paradigms)


def columns(row: dict[str, Any]) -> dict[str, str]:
    """Return a model's cells on the console by header."""
    if row["overall"] is None:
        return {"overall": "-"}
    by_field = row["groups"].get("field") or row["groups"].get("linguistics_term") or {}
    shown = by_field or {name: found["accuracy"] for name, found in row["paradigms"].items()}
    overall = f"{row['overall']:.1f} +- {row['margins']['overall']:.1f}"
    return {"overall": overall, **{name: f"{accuracy:.1f}" for name, accuracy in shown.items()}}


def legend(protocol: MinimalPairsConfig, parts: Sequence[Paradigm]) -> str:
    """Return the line below the table that explains its numbers."""
    count = f"{len(parts)} paradigm{'s' * (len(parts) != 1)}"
    return (
        f"accuracy in percent by {protocol.score}, mean over {count}; chance is 50, ties count half; +- half of the "
        "95 % interval over pairs"
    )


def notes(row: dict[str, Any]) -> list[str]:
    """Return remarks on a model's row."""
    ties = sum(found["ties"] for found in row["paradigms"].values())
    pairs = sum(found["pairs"] for found in row["paradigms"].values())
    return [f"{ties} of {pairs} pairs are ties: both sentences have the same score, such as with equal tokens"] * (
        ties > 0
    )
