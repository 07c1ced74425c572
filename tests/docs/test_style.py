"""Wording of docstrings, comments, messages, Markdown and YAML."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.docs.markdown import GENERATED, PAGES, page_name, prose

LINE = 120
FIRST_WORDS = ("What", "Whether", "Those", "It", "As")
BANNED = (
    "what is none",
    "asks nobody",
    "goes on",
    "go on",
    "let go of",
    "lets go of",
    "as ever",
    "gives back",
    "give back",
    "answers to",
    "take up",
    "takes up",
)
_BANNED = re.compile(rf"\b({'|'.join(BANNED)})\b", re.IGNORECASE)
THIS_FILE = "tests/docs/test_style.py"
PYTHON = sorted(
    page_name(path)
    for pattern in ("*.py", "cram_composer/**/*.py", "tests/**/*.py", "benchmarks/*.py", "scripts/*.py", ".ci/*.py")
    for path in REPOSITORY.glob(pattern)
    if page_name(path) != THIS_FILE
)
YAML = sorted(
    page_name(path)
    for pattern in ("*.yml", "recipes/*.yaml", "yamls/**/*.yaml", "benchmarks/*.yaml", "examples/*/*.yaml")
    for path in REPOSITORY.glob(pattern)
)
FOLDERS = sorted({"/".join(name.split("/")[:2]) if "/" in name else name for name in PYTHON})
_DOCS_PATH = re.compile(r"\bdocs/[\w/-]+\.(?:md|png|svg)\b")


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def files_of(folder: str) -> list[str]:
    return [name for name in PYTHON if name == folder or name.startswith(f"{folder}/")]


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers and texts of all docstrings of a module."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[0] if node.body else None
            if (
                isinstance(body, ast.Expr)
                and isinstance(body.value, ast.Constant)
                and isinstance(body.value.value, str)
            ):
                yield body.lineno, body.value.value


def words(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers and texts of comments and strings, docstrings included."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def banned(text: str) -> list[str]:
    """Banned phrases of a text, also those that a line break divides."""
    return [match[0] for match in _BANNED.finditer(re.sub(r"\s*\n[\s#]*", " ", text))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_docstring_starts_with_what_it_documents(folder: str):
    found = [
        f"{name}:{line}: {text.strip().splitlines()[0]}"
        for name in files_of(folder)
        for line, text in docstrings(read(name))
        if text.strip() and re.match(rf"({'|'.join(FIRST_WORDS)})\b", text.strip())
    ]
    assert found == [], "start with a verb in the imperative or a noun phrase"


@pytest.mark.parametrize("folder", FOLDERS)
def test_code_has_no_banned_phrase(folder: str):
    found = [
        f"{name}:{line}: {phrase}"
        for name in files_of(folder)
        for line, text in words(read(name))
        for phrase in banned(text)
    ]
    assert found == []


def test_yaml_has_no_banned_phrase():
    assert [f"{name}: {phrase}" for name in YAML for phrase in banned(read(name))] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_page_has_no_banned_phrase(page: Path):
    if page_name(page) not in GENERATED:
        assert banned("\n".join(line for _, line in prose(page))) == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_prose_has_short_lines(page: Path):
    if page_name(page) in GENERATED:
        return
    long = [
        f"{page_name(page)}:{number}"
        for number, line in prose(page)
        if len(line) > LINE and " " in re.sub(r"^(\s*(?:[-*]|\d+\.))?\s+|!?\[[^]]*\]\([^)]*\)", "", line).strip()
        if not line.lstrip().startswith(("|", "#"))
    ]
    assert long == []


def test_files_of_docs_that_are_named_exist():
    named = {
        f"{name}: {path}"
        for name in [*PYTHON, *YAML, "pyproject.toml", "Makefile"]
        for path in _DOCS_PATH.findall(read(name))
        if not (REPOSITORY / path).is_file() and "/site/" not in path
    }
    assert sorted(named) == []
