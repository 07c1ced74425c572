"""Unigram language model of pieces (Kudo 2018, arXiv 1804.10959), trained by sentencepiece on counted words.

Expectation-maximization runs in one thread and over sorted words, so that the same text gives the same vocabulary. The
trainer of `tokenizers` is not reproducible: its sums depend on the order of hash maps and threads.

The initial pieces are counted here. From a list of words, sentencepiece would count every word once, which costs 5 to
10 % more tokens; from whole text it would hold all of it in memory (1.2 GB instead of 0.2 GB for 57 MB).
"""

from __future__ import annotations

import heapq
import io
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import sentencepiece
from tokenizers import Tokenizer, models, trainers

from cram_composer.config.schema.data_build import NormaliseConfig, TokenizerConfig
from cram_composer.data.pipeline.tokenizer.common import (
    MIN_COUNT,
    SPACE,
    SPECIAL_TOKENS,
    check_alphabet_fits,
    configure_spaced_words,
    most_frequent_characters,
)

_WORDS = 1 << 18  # most frequent words to learn from
_LONGEST_WORD = 24  # characters
_LONGEST_PIECE = 16  # characters
_INITIAL_PIECES = 8  # per piece of the vocabulary
_KEPT = 0.9  # share of the pieces that survives a round; sentencepiece's own 0.75 costs up to 0.7 % more tokens
_RESERVED = "▅"  # U+2585, sentencepiece's mark of unknown characters: it skips words that contain it
_ENCODED_BYTES = 1 << 20  # at a time


def unigram(sample: Path, config: TokenizerConfig, normalise: NormaliseConfig, show_progress: bool) -> Tokenizer:
    """Train on frequent words, starting from their frequent substrings; every character of the alphabet is a piece."""
    unknown = SPECIAL_TOKENS["unk"]
    counter = configure_spaced_words(Tokenizer(models.WordLevel({unknown: 0}, unk_token=unknown)), normalise)
    characters = most_frequent_characters(sample, counter.normalizer.normalize_str, config.limit_alphabet)
    single = sorted({*characters, SPACE})
    check_alphabet_fits(config, len(SPECIAL_TOKENS) + len(single), len(characters))
    words = _count_words(sample, counter, set(single), show_progress)
    pieces = _train(words, single, config.vocab_size - len(SPECIAL_TOKENS), sample.parent)
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS.values()] + pieces
    return configure_spaced_words(
        Tokenizer(models.Unigram(vocabulary, unk_id=list(SPECIAL_TOKENS).index("unk"))), normalise
    )


def _count_words(sample: Path, counter: Tokenizer, known: set[str], show_progress: bool) -> dict[str, int]:
    """Count the most frequent words of known characters; `tokenizers` makes both passes over the sample."""
    trainer = trainers.WordLevelTrainer(
        vocab_size=_WORDS + 1,
        min_frequency=MIN_COUNT,
        special_tokens=[SPECIAL_TOKENS["unk"]],
        show_progress=show_progress,
    )
    counter.train([str(sample)], trainer)
    counts = np.zeros(counter.get_vocab_size(), np.int64)
    with open(sample, encoding="utf-8", newline="\n") as file:
        while lines := file.readlines(_ENCODED_BYTES):
            ids = [np.array(encoding.ids, np.int64) for encoding in counter.encode_batch_fast(lines)]
            counts += np.bincount(np.concatenate(ids), minlength=len(counts))
    return {
        word: int(counts[number])
        for word, number in sorted(counter.get_vocab().items(), key=lambda item: item[1])[1:]
        if len(word) <= _LONGEST_WORD and known.issuperset(word)
    }


def _train(words: dict[str, int], single: list[str], size: int, folder: Path) -> list[tuple[str, float]]:
    """Return at most `size` pieces, including all of `single`, with log-probabilities, most likely first."""
    skipped = [character for character in single if character in _RESERVED]
    model = io.BytesIO()
    with tempfile.TemporaryDirectory(dir=folder, prefix="unigram-") as scratch:
        known = [*words.items(), *((character, 1) for character in single)]
        counted = _write_counts(Path(scratch) / "words.tsv", known)
        initial = _write_counts(Path(scratch) / "pieces.tsv", _frequent_substrings(words, _INITIAL_PIECES * size))
        sentencepiece.SentencePieceTrainer.train(
            input=str(counted),
            input_format="tsv",
            seed_sentencepieces_file=str(initial),
            model_writer=model,
            model_type="unigram",
            vocab_size=size - len(skipped) + 1,  # and its unknown token
            hard_vocab_limit=False,
            max_sentencepiece_length=_LONGEST_PIECE,
            shrinking_factor=_KEPT,
            num_threads=1,
            # Words come normalized, split, and with the space before them.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_unicode_script=False,
            split_by_number=False,
            character_coverage=1.0,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    # Scores are single-precision; fewer digits make them independent of the processor's rounding.
    pieces = [(trained.id_to_piece(i), round(trained.get_score(i), 4)) for i in range(1, trained.get_piece_size())]
    lowest = min(score for _, score in pieces)
    return sorted([*pieces, *((character, lowest) for character in skipped)], key=lambda piece: (-piece[1], piece[0]))


def _write_counts(path: Path, counts: list[tuple[str, int]]) -> Path:
    path.write_text("".join(f"{text}\t{count}\n" for text, count in counts), encoding="utf-8")
    return path


def _frequent_substrings(words: dict[str, int], limit: int) -> list[tuple[str, int]]:
    """Return the `limit` substrings of at least two characters that cover the most characters, with these numbers."""
    best: list[tuple[str, int]] = []
    for size in range(2, _LONGEST_PIECE + 1):  # one at a time to bound memory
        counts: Counter[str] = Counter()
        for word, count in words.items():
            for start in range(len(word) - size + 1):
                counts[word[start : start + size]] += count
        found = ((text, size * count) for text, count in counts.items() if count >= MIN_COUNT)
        best = heapq.nsmallest(limit, [*best, *found], key=lambda item: (-item[1], item[0]))
    return best
