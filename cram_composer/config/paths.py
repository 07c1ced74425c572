"""Paths of the recipes and YAML files of cram-composer, and expansion of paths in a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from string import Template

from cram_composer.errors import ConfigError


def shared_dir() -> Path:
    """Return the folder that holds `recipes/` and `yamls/`: the top of a checkout, or a copy in an installed package.

    `cram_composer/_shared/` links to both, and building a wheel replaces the links by files. Resolving a link works in
    both cases, without detecting a checkout.
    """
    return (Path(__file__).parent.parent / "_shared" / "recipes").resolve().parent


def find_shared(path: Path) -> Path:
    """Return `path` if it exists, otherwise the file of that name in cram-composer. Raises ConfigError."""
    for candidate in (path, shared_dir() / path):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"{path}: no such file, neither here nor in {shared_dir()}; check the name")


def protocol_file(name: str) -> Path:
    """Return the YAML of an evaluation protocol: a name in `yamls/eval` or a file. Raises ConfigError."""
    return _named(name, "eval", f"--suite {name}: no such protocol")


def sweep_file(name: str) -> Path:
    """Return the YAML of a sweep: a name in `yamls/sweeps` or a file. Raises ConfigError."""
    return _named(name, "sweeps", f"{name}: no such sweep")


def _named(name: str, folder_name: str, complaint: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return find_shared(Path(name))
    folder = shared_dir() / "yamls" / folder_name
    if not (folder / f"{name}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ConfigError(f"{complaint}; use one of {known}, or a YAML file")
    return folder / f"{name}.yaml"


def expand(path: str) -> Path:
    """Expand `~` and `$VARIABLES` in a path; `$CRAM_CACHE` defaults to `~/.cache/cram-composer`. Raises ConfigError."""
    expanded = Path(Template(path).safe_substitute({"CRAM_CACHE": "~/.cache/cram-composer"} | os.environ))
    try:
        return expanded.expanduser()
    except RuntimeError:
        raise ConfigError(f"'{path}': no home folder for '{expanded.parts[0]}'; write the path in full") from None
