"""The `clean` stage: Unicode normalization and, on request, conversion to ASCII."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from cram_composer.config.schema.data_build import CleanConfig

# Regular expressions of typographic characters and their ASCII spelling, used by both the tokenizer's normalizer
# (`normalise.ascii_only`) and this stage (`clean.ascii`).
TYPOGRAPHIC = {"[‘’‚′]": "'", "[“”„″]": '"', "[‐-―−]": "-", "…": "..."}  # noqa: RUF001

# Characters whose removal would join words: line ends, other white space, the slash of "½" (NFKC).
_SPACES = {"[\x85\u2028\u2029]": "\n", r"[^\S\x00-\x7F]": " ", "\N{FRACTION SLASH}": "/"}
_MARKS = [(re.compile(characters), ascii_) for characters, ascii_ in (TYPOGRAPHIC | _SPACES).items()]
_NOT_ASCII = re.compile(r"[^\x00-\x7F]{1,8}")


class Cleaner:
    """Rewrites a text according to `config`; applying it twice has no further effect."""

    def __init__(self, config: CleanConfig) -> None:
        self._form = None if config.unicode == "none" else config.unicode.upper()
        self._ascii = config.ascii

    def __call__(self, text: str) -> str:
        """Return the clean text. ASCII text is returned unchanged: it is normalized in every form."""
        if text.isascii():
            return text
        if self._ascii:
            # The ASCII form of a character does not depend on its neighbours: composition across them is undone by
            # decomposition. The few distinct non-ASCII characters repeat, so the conversion is cached.
            return _NOT_ASCII.sub(lambda match: _to_ascii(match.group(), self._form), text)
        return _normalize(text, self._form)


@lru_cache(maxsize=1 << 14)
def _to_ascii(text: str, form: str | None) -> str:
    """Convert a text to ASCII."""
    # NFKC decomposes some marks (a double prime becomes two single ones) and creates others (the slash of "½"): marks
    # are replaced before and after it.
    text = _replace_marks(_normalize(_replace_marks(text), form))
    # Letters lose their accents; other non-ASCII characters are removed.
    return unicodedata.normalize("NFD", text).encode("ascii", "ignore").decode()


def _normalize(text: str, form: str | None) -> str:
    return text if form is None else unicodedata.normalize(form, text)  # type: ignore[arg-type]


def _replace_marks(text: str) -> str:
    for characters, ascii_ in _MARKS:
        text = characters.sub(ascii_, text)
    return text
