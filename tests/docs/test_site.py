"""scripts/docs_site.py: links between files of the repository become links between pages of the site."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY

_spec = importlib.util.spec_from_file_location("docs_site", REPOSITORY / "scripts" / "docs_site.py")
assert _spec is not None and _spec.loader is not None
docs_site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(docs_site)


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("docs/how-to/sweeps.md", "../../benchmarks/RESULTS.md", "../explanation/results.md"),
        ("docs/explanation/budget.md", "../../benchmarks/RESULTS.md", "results.md"),
        ("docs/index.md", "../CONTRIBUTING.md", "development/contributing.md"),
        ("CONTRIBUTING.md", "docs/how-to/install.md", "../how-to/install.md"),
        ("CONTRIBUTING.md", "CHANGELOG.md", "changelog.md"),
        ("docs/how-to/glue.md", "slurm.md#data-builds", "slurm.md#data-builds"),
        ("docs/how-to/glue.md", "https://example.org/x.md", "https://example.org/x.md"),
    ],
)
def test_links_point_at_pages(source: str, link: str, expected: str):
    assert docs_site.relink(f"[text]({link})", source) == f"[text]({expected})"


def test_the_command_line_page_has_every_command():
    page = docs_site.command_line()
    shown = re.findall(r"^## (cram.*)$", page, re.MULTILINE)
    assert {"cram", "cram train", "cram data build", "cram scaling-law"} <= set(shown)
    assert len(shown) == len(set(shown)) == page.count("usage: ")


def test_links_of_the_readme_exist():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert len(targets) > 8
    assert [target for target in targets if not (REPOSITORY / target).is_file()] == []
    assert text.count("\n") <= 120


def test_every_page_is_in_the_navigation():
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"]))
    pages = [path.relative_to(REPOSITORY / "docs").as_posix() for path in (REPOSITORY / "docs").glob("**/*.md")]
    assert sorted(listed) == sorted([*pages, *docs_site.PAGES.values(), "reference/command-line.md"])


def test_the_site_builds_without_a_broken_link(tmp_path: Path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "reference" / "leaderboard.html").is_file()
