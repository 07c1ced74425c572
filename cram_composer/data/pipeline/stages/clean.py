"""Clean-up of text: one Unicode form and, on request, nothing but ASCII."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from cram_composer.config.schema.data_build import CleanConfig

# Characters, as a regular expression, and what ASCII writes for them. Text of the tokenizer's normaliser
# (`normalise.ascii_only`) and of this stage (`clean.ascii`) is spelt alike.
TYPOGRAPHIC = {"[‘’‚′]": "'", "[“”„″]": '"', "[‐-―−]": "-", "…": "..."}  # noqa: RUF001

# What would otherwise glue words together where it is dropped: line ends, other white space, the slash of "½" (NFKC).
_SPACES = {"[\x85\u2028\u2029]": "\n", r"[^\S\x00-\x7F]": " ", "\N{FRACTION SLASH}": "/"}
_MARKS = [(re.compile(characters), ascii_) for characters, ascii_ in (TYPOGRAPHIC | _SPACES).items()]
_NOT_ASCII = re.compile(r"[^\x00-\x7F]{1,8}")


class Cleaner:
    """Rewrites a text as `config` says. Cleaning twice is cleaning once."""

    def __init__(self, config: CleanConfig) -> None:
        self._form = None if config.unicode == "none" else config.unicode.upper()
        self._ascii = config.ascii

    def __call__(self, text: str) -> str:
        """The clean text. Text that is all ASCII is that in every form, and is returned as it is."""
        if text.isascii():
            return text
        if self._ascii:
            # What ASCII has for a character does not depend on its neighbours: forms compose across them, but what is
            # composed comes apart again. The few characters that are not ASCII are the same ones again and again.
            return _NOT_ASCII.sub(lambda match: _spelt_out(match.group(), self._form), text)
        return _normalised(text, self._form)


@lru_cache(maxsize=1 << 14)
def _spelt_out(text: str, form: str | None) -> str:
    """What ASCII has for a text."""
    # NFKC takes some marks apart (a double prime becomes two single ones) and makes others out of what was none (the
    # slash of "½"): hence before it and after it.
    text = _replace_marks(_normalised(_replace_marks(text), form))
    # Letters lose their accents; what is then not ASCII goes.
    return unicodedata.normalize("NFD", text).encode("ascii", "ignore").decode()


def _normalised(text: str, form: str | None) -> str:
    return text if form is None else unicodedata.normalize(form, text)  # type: ignore[arg-type]


def _replace_marks(text: str) -> str:
    for characters, ascii_ in _MARKS:
        text = characters.sub(ascii_, text)
    return text
