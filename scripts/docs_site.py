"""MkDocs hooks: pages made from files outside docs/, and the command-line reference made from the parsers."""

from __future__ import annotations

import argparse
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
# File in the repository: its page on the site.
PAGES = {
    "CONTRIBUTING.md": "development/contributing.md",
    "CHANGELOG.md": "development/changelog.md",
    "SECURITY.md": "development/security-policy.md",
    "benchmarks/RESULTS.md": "explanation/results.md",
}
_LINK = re.compile(r"(\]\()([^)\s#:]+\.md)([#)])")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for source in PAGES:
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, PAGES[source], content=relink(text, source)))
    files.append(File.generated(config, "reference/command-line.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links to files outside docs/ at their pages."""
    generated = page.file.src_uri in PAGES.values()
    return markdown if generated else relink(markdown, f"docs/{page.file.src_uri}")


def relink(text: str, source: str) -> str:
    """Rewrite the relative links of the repository's file `source` into links between pages of the site."""
    here = posixpath.dirname(page_of(source))

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        return f"{match[1]}{posixpath.relpath(page_of(target), here or '.')}{match[3]}"

    return _LINK.sub(rewritten, text)


def page_of(file: str) -> str:
    """Return the page of a file of the repository, relative to the top of the site."""
    return PAGES.get(file) or posixpath.relpath(file, "docs")


def command_line() -> str:
    """Return the help of every command as one page."""
    from cram_composer.cli import build_parser

    os.environ["COLUMNS"] = "100"  # argparse wraps its help at this width
    parts = ["# Command line\n\nThis page shows `cram COMMAND --help` of every command.\n"]
    for parser in parsers(build_parser()):
        parts.append(f"## {parser.prog}\n\n```text\n{parser.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of its subcommands, depth first."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)
