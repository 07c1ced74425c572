"""CONTRIBUTING.md: its map lists every package, and every file and folder that it names exists."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = REPOSITORY / "cram_composer"


def section(title: str) -> str:
    return TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_map_lists_every_package_once():
    listed = re.findall(r"^  ([a-z_/]+)/ +\S", section("Where things live"), re.MULTILINE)
    packages = [path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")]
    assert sorted(listed) == sorted(set(packages) - {"."})


def test_nothing_else_is_loose_at_the_top_of_the_package():
    loose = {path.name for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__.py", "cli.py", "errors.py", "device.py"}
    assert all(f" {name} " in f" {section('Where things live')} " for name in loose - {"__init__.py"})


def test_imports_run_downward_only():
    order = TEXT.partition("Imports run downward only")[2].partition(".\n")[0]
    levels = [re.findall(r"`(\w+)`", level) for level in order.split("->")]
    level_of = {name: number for number, names in enumerate(levels) for name in names}
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert level_of.keys() == rooms - {"__init__"}
    upward = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for imported in re.findall(r"^\s*from cram_composer\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            if imported != room and level_of[imported] <= level_of[room]:
                upward.append(f"{path.relative_to(PACKAGE)}: {imported}")
    assert upward == []


def test_the_files_that_it_names_exist():
    named = re.findall(r"`([a-z_]+/[\w/]+\.py)`", TEXT)
    assert len(named) > 20
    assert [name for name in named if "NAME" not in name and not _exists(name)] == []


def _exists(name: str) -> bool:
    return any((folder / name).is_file() for folder in (PACKAGE, REPOSITORY))


def test_tests_mirror_the_package():
    loose = {path.name for path in (REPOSITORY / "tests").glob("*.py")}
    assert not [name for name in loose if name.startswith("test_")]
    # of what stands beside the package, or of all of it
    others = {"docs", "examples", "faults", "lowering", "scripts", "services", "uses"}
    folders = {path.name for path in (REPOSITORY / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders - others <= {path.name for path in PACKAGE.iterdir()}
