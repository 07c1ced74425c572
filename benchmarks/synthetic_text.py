"""English-like text of any size for benchmarks of data builds, the same on every machine.

Word frequencies fall as in English (Zipf and Mandelbrot, Mandelbrot 1953): flat among the first ranks, then as rank to
the power -1.5, so that the number of distinct words grows as the length of the text to the power 2/3. The most common
words are English function words; the others are made of syllables. Some documents are copies or near copies, share a
paragraph, or must be dropped by a filter.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("jsonl", "jsonl.zst", "parquet")
_COMMON_TEXT = """
the of and to a in that is was he for it with as his on be at by had not are but from or have an they which one you
were all her she there would their we him been has when who will no more if out so up said what its about than into
them can only other time new some could these two may first then do any like my now over such our man me even most
made after also did many off before must well back through years much where your way down should because long each
just those people too good state men still own see work long make here both between life being under never day same
another know while last might great old year come since against go came right used take three
"""
_COMMON = _COMMON_TEXT.split()
_ONSET_TEXT = "b c d f g h l m n p r s t v w br cl dr fr gr pl pr sh sp st th tr"
_RHYME_TEXT = "a e i o u ai ea ou an en in on er or al el is us ar it ine ate ion ent ive"
_ONSETS, _RHYMES = _ONSET_TEXT.split(), _RHYME_TEXT.split()
_FLAT_RANKS = 20.0
_WORDS = 500  # in a document
_KNOWN = 200_000
_TO_CYRILLIC = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопкрстувшыжз")


def write_files(folder: Path, size: int, format_: str, files: int = 1, workers: int = 1) -> list[Path]:
    """Write about `size` characters of text into `files` files in a format of FORMATS; return their paths."""
    paths = [folder / f"text-{number:05d}.{format_}" for number in range(files)]
    tasks = [(path, size // files, number) for number, path in enumerate(paths)]
    if workers == 1:
        for task in tasks:
            _write(*task)
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(_write, *zip(*tasks, strict=True)))
    return paths


def documents(size: int, seed: int) -> Iterator[str]:
    """Yield documents of about `size` characters in total."""
    random = np.random.default_rng([1, seed])
    everywhere = np.random.default_rng(0)  # the same texts for all files
    famous = [_document(everywhere) for _ in range(50)]
    boilerplate = [" ".join(_words(everywhere, 60)) + "." for _ in range(50)]
    recent: deque[str] = deque(maxlen=64)
    while size > 0:
        text = _document(random)
        kind = random.random()
        if kind < 0.02:
            text = famous[random.integers(len(famous))]
        elif kind < 0.05 and recent:
            text = _changed(recent[random.integers(len(recent))], random)
        elif kind < 0.15:
            text = f"{text}\n{boilerplate[random.integers(len(boilerplate))]}"
        elif kind < 0.16:
            text = text[:100]
        elif kind < 0.17:
            text = text.replace(" ", " # ")
        elif kind < 0.18:
            text = text.lower().translate(_TO_CYRILLIC)
        elif kind < 0.19:
            text = " ".join("".join(map(chr, random.integers(97, 123, 7))) for _ in range(_WORDS)) + " the and of that"
        recent.append(text)
        size -= len(text)
        yield text


def _document(random: np.random.Generator) -> str:
    words = _words(random, _WORDS)
    ends = np.cumsum(random.integers(6, 25, _WORDS // 6))
    words[0] = words[0].capitalize()
    for sentence, end in enumerate(ends[ends < _WORDS - 1].tolist()):
        words[end] += ".\n" if sentence % 5 == 4 else "."
        words[end + 1] = words[end + 1].capitalize()
    return " ".join(words).replace("\n ", "\n") + "."


def _words(random: np.random.Generator, count: int) -> list[str]:
    ranks = _FLAT_RANKS * (random.random(count) ** -2.0 - 1.0)
    known = _known_words()
    numbers = np.minimum(ranks, 2.0**50).astype(np.int64).tolist()
    return [known[number] if number < _KNOWN else _word(number) for number in numbers]


@cache
def _known_words() -> list[str]:
    """Return the most common words, cached because making them takes most of the time."""
    return _COMMON + [_word(number) for number in range(len(_COMMON), _KNOWN)]


def _word(number: int) -> str:
    """Return a different word for every number."""
    number -= len(_COMMON)
    word = ""
    while True:
        number, onset = divmod(number, len(_ONSETS))
        number, rhyme = divmod(number, len(_RHYMES))
        word += _ONSETS[onset] + _RHYMES[rhyme]
        if not number:
            return word if len(word) > 2 else word + "n"
        number -= 1


def _changed(text: str, random: np.random.Generator) -> str:
    """Return the text with one word in fifty replaced."""
    words = text.split(" ")
    places = random.integers(0, len(words), len(words) // 50)
    for place, word in zip(places.tolist(), _words(random, len(places)), strict=True):
        words[place] = word
    return " ".join(words)


def _write(path: Path, size: int, seed: int) -> None:
    texts = documents(size, seed)
    if path.suffix == ".parquet":
        schema = pa.schema([("text", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            while batch := list(islice(texts, 10_000)):
                writer.write_table(pa.table({"text": batch}, schema))
        return
    compression = "zstd" if path.suffix == ".zst" else None
    with pa.output_stream(str(path), compression=compression, buffer_size=1 << 20) as file:
        for text in texts:
            file.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
