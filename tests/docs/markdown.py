"""Code blocks and prose of the Markdown pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

PAGES = sorted(
    path
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("benchmarks/*.md"), *REPOSITORY.glob("docs/**/*.md")]
    if "site" not in path.relative_to(REPOSITORY).parts
)
# The code that generates them is checked instead.
GENERATED = {"docs/reference/configuration.md", "docs/reference/recipes.md", "docs/reference/leaderboard.md"}
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_GENERATED_PART = re.compile(r"^<!-- (\w+) -->$.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a code block: its page, line number, text with continuation lines joined, and comment."""

    page: str
    line: int
    text: str
    comment: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def page_name(path: Path) -> str:
    """Path relative to the repository."""
    return path.relative_to(REPOSITORY).as_posix()


def commands(path: Path) -> list[Command]:
    """Commands of the bash blocks of a page."""
    text = path.read_text(encoding="utf-8")
    found = []
    for block in _BLOCK.finditer(text):
        if block[1] != "bash":
            continue
        first = text[: block.start()].count("\n") + 2
        joined = ""
        for number, line in enumerate(block[2].splitlines(), start=first):
            joined += line
            if joined.endswith("\\"):
                joined = joined[:-1]
                continue
            if joined.strip() and not joined.lstrip().startswith("#"):
                words, _, comment = joined.partition(" #")
                found.append(Command(page_name(path), number, " ".join(words.split()), comment.strip()))
            joined = ""
    return found


def yaml_blocks(path: Path) -> list[str]:
    """Texts of the YAML blocks of a page."""
    return _blocks(path, "yaml")


def python_blocks(path: Path) -> list[str]:
    """Texts of the Python blocks of a page."""
    return _blocks(path, "python")


def _blocks(path: Path, language: str) -> list[str]:
    return [block[2] for block in _BLOCK.finditer(path.read_text(encoding="utf-8")) if block[1] == language]


def prose(path: Path) -> list[tuple[int, str]]:
    """Line numbers and lines of a page outside code blocks and generated parts."""
    text = path.read_text(encoding="utf-8")
    for pattern in (_BLOCK, _GENERATED_PART):
        text = pattern.sub(lambda match: "\n" * match[0].count("\n"), text)
    return list(enumerate(text.splitlines(), start=1))


def bash_script(found: list[Command], page: Path | None = None) -> str:
    """A script of commands, with the Python blocks of their page in between; a command may be expected to fail."""
    steps = [(command.line, _step(command)) for command in found]
    if page is not None:
        text = page.read_text(encoding="utf-8")
        for block in _BLOCK.finditer(text):
            if block[1] == "python":
                steps.append((text[: block.start()].count("\n") + 1, f"python - <<'END'\n{block[2]}END"))
    return "\n".join(step for _, step in sorted(steps)) + "\n"


def _step(command: Command) -> str:
    if command.comment.startswith("error"):
        return f"if {command.text}; then exit 99; fi"
    return command.text
