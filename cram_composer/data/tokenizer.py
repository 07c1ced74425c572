"""The tokenizer of a data set: WordPiece trained on a sample of its text, or an existing one; saved as a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cram_composer.config.data_schema import NormaliseConfig, TokenizerConfig
from cram_composer.config.paths import expand
from cram_composer.data.progress import Progress
from cram_composer.data.sources import Source
from cram_composer.data.text import SPLITS, SplitPiece, split_documents
from cram_composer.errors import CramError

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MODEL_MAX_LENGTH = 512
_PREFIX = "##"
_MIN_PAIR_COUNT = 2  # a piece of a word that is there once is noise, and would fill the vocabulary of a small corpus


@dataclass(frozen=True)
class BuiltTokenizer:
    """A tokenizer in use: ids of its special tokens by role, and the hash of its tokenizer.json."""

    backend: Tokenizer
    vocab_size: int
    special_tokens: dict[str, int]
    sha256: str

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 65535 else np.uint32)

    def encode_batches(self, batches: Iterable[list[SplitPiece]]) -> Iterator[tuple[list[SplitPiece], list[list[int]]]]:
        """Each batch with the token ids of its pieces, no special tokens added. The next batch is read meanwhile."""
        before: tuple[list[SplitPiece], Future] | None = None
        with ThreadPoolExecutor(1) as pool:
            for batch in batches:
                texts = [piece.text for piece in batch]
                future = pool.submit(self.backend.encode_batch_fast, texts, add_special_tokens=False)
                if before is not None:
                    yield before[0], [encoding.ids for encoding in before[1].result()]
                before = batch, future
            if before is not None:
                yield before[0], [encoding.ids for encoding in before[1].result()]


def normalizer(config: NormaliseConfig) -> normalizers.Normalizer:
    """What happens to text before it is split into words."""
    bert = normalizers.BertNormalizer(lowercase=config.lowercase, strip_accents=config.strip_accents)
    if not config.ascii_only:
        return bert
    typographic = {"[‘’‚′]": "'", "[“”„″]": '"', "[‐-―−]": "-", "…": "..."}  # noqa: RUF001
    steps = [normalizers.Replace(Regex(characters), ascii_) for characters, ascii_ in typographic.items()]
    return normalizers.Sequence([*steps, bert, normalizers.Replace(Regex(r"[^\x00-\x7F]+"), "")])


def write_sample(
    sources: list[Source], path: Path, size: int, validation_fraction: float, seed: int, progress: Progress
) -> None:
    """Write up to `size` bytes of train documents to `path`, a piece per line, each source having its fair share."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for source, share in zip(sources, _fair_shares([s.expected_bytes for s in sources], size), strict=True):
            left = share
            for piece in split_documents(source.sample(share), validation_fraction, seed):
                if SPLITS[piece.split] == "train":
                    file.write(piece.text + "\n")
                    written = len(piece.text.encode()) + 1
                    progress.advance(written)
                    left -= written
                if left <= 0:
                    break


def _fair_shares(sizes: list[int | None], total: int) -> list[int]:
    """Shares of `total`: everything of the small ones, and what they leave over to the large ones and the unknown."""
    shares = [0] * len(sizes)
    known = [total if size is None else size for size in sizes]
    left = total
    for done, i in enumerate(sorted(range(len(sizes)), key=known.__getitem__)):
        shares[i] = min(known[i], left // (len(sizes) - done))
        left -= shares[i]
    return shares


def train_tokenizer(
    sample: Path, config: TokenizerConfig, normalise: NormaliseConfig, show_progress: bool = False
) -> Tokenizer:
    """WordPiece over BERT's words, learnt from the lines of `sample`; the same sample gives the same vocabulary.

    `tokenizers` numbers the first pieces ("##a", "##b", ...) in the order of a hash map, and merges of equal frequency
    are ordered by those numbers, so that its vocabularies differ from run to run. Pieces that are declared as special
    tokens are numbered as declared: here all single characters are, in code point order, and the trainer is left with
    no choice that depends on a hash. They are ordinary pieces again in the tokenizer that is returned.

    Raises CramError for a sample without text and for a vocabulary that cannot hold the alphabet.
    """
    if not sample.stat().st_size:
        raise CramError("no text: the sources hold nothing for the train split to train a tokenizer on")
    learner = _untrained({}, normalise)
    alphabet = _alphabet(sample, learner, config.limit_alphabet)
    continuing = [_PREFIX + c for c in alphabet if _continues_words(c, learner)]
    first = [*SPECIAL_TOKENS.values(), *continuing]
    if len(first) + len(alphabet) > config.vocab_size:
        raise CramError(
            f"tokenizer.vocab_size: {config.vocab_size} entries cannot hold the text's {len(alphabet)} characters; "
            "raise it or lower tokenizer.limit_alphabet"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=_MIN_PAIR_COUNT,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_PREFIX,
        show_progress=show_progress,
    )
    learner.train([str(sample)], trainer)
    return _untrained(learner.get_vocab(), normalise)


def _continues_words(character: str, learner: Tokenizer) -> bool:
    """False for punctuation and Chinese characters, which are words by themselves."""
    return len(learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str("a" + character))) == 1


def _untrained(vocabulary: dict[str, int], normalise: NormaliseConfig) -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk"], continuing_subword_prefix=_PREFIX)
    )
    tokenizer.normalizer = normalizer(normalise)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
    return tokenizer


def _alphabet(sample: Path, learner: Tokenizer, limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation, ties by code point, sorted.

    ASCII counts as seen: a character that a small corpus lacks may turn up in fine-tuning.
    """
    counts = np.zeros(0x110000, np.int64)
    counts[ord("!") : ord("~") + 1] = 1
    with open(sample, encoding="utf-8", newline="\n") as file:
        for line in file:
            points, times = np.unique(np.frombuffer(line.encode("utf-32-le"), np.uint32), return_counts=True)
            counts[points] += times
    # Normalising whole texts is slow; it acts on one character at a time, so that the counts may come first.
    normalised = np.zeros_like(counts)
    for point in np.flatnonzero(counts):
        for character in learner.normalizer.normalize_str(chr(point)):
            if not character.isspace():
                normalised[ord(character)] += counts[point]
    seen = np.flatnonzero(normalised)
    kept = seen[np.lexsort((seen, -normalised[seen]))][:limit]
    return [chr(point) for point in np.sort(kept)]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> BuiltTokenizer:
    """Save a trained tokenizer as a folder for AutoTokenizer, with BERT's [CLS] A [SEP] B [SEP] for fine-tuning."""
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS.values()])
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],  # no token types: pairs are told apart by [SEP]
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in SPECIAL_TOKENS.items()},
    )
    return _save(wrapped, folder)


def adopt_tokenizer(config: TokenizerConfig, folder: Path) -> BuiltTokenizer:
    """Copy the existing tokenizer at `config.path`, unchanged but for its maximum length. Raises CramError."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = expand(config.path or "")
    if not source.is_dir():
        raise CramError(f"tokenizer.path: {source} is not a folder of a Hugging Face tokenizer")
    try:
        loaded = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except Exception as error:  # from_pretrained raises a great many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CramError(f"tokenizer.path: {source} cannot be loaded: {reason}") from error
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise CramError(f"tokenizer.path: {source} holds no fast tokenizer (tokenizer.json)")
    missing = [role for role in SPECIAL_TOKENS if getattr(loaded, f"{role}_token_id") is None]
    if missing:
        raise CramError(f"tokenizer.path: {source} has no {', '.join(missing)} token, which masked LM training needs")
    return _save(loaded, folder)


def _save(wrapped: Any, folder: Path) -> BuiltTokenizer:
    wrapped.model_max_length = MODEL_MAX_LENGTH
    wrapped.save_pretrained(folder)
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # "[MASK]" written in a document is text, not a mask
    roles = {role: getattr(wrapped, f"{role}_token_id") for role in SPECIAL_TOKENS}
    return BuiltTokenizer(backend, len(wrapped), roles, digest)
