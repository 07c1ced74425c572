"""Where things are: the recipes and run files that come with cram-composer, and paths written in a configuration."""

from __future__ import annotations

import os
from pathlib import Path
from string import Template

from cram_composer.errors import ConfigError


def shared_dir() -> Path:
    """The folder that holds `recipes/` and `yamls/`: the top of a checkout, or a copy inside an installed package.

    `cram_composer/_shared/` has a link to each; building a wheel replaces the links by the files. Following one
    therefore ends in the right place, with no need to guess whether this is a checkout.
    """
    return (Path(__file__).parent.parent / "_shared" / "recipes").resolve().parent


def find_shared(path: Path) -> Path:
    """`path` as it is where that exists, otherwise the file of that name that comes with cram-composer.

    Raises ConfigError when there is neither.
    """
    for candidate in (path, shared_dir() / path):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"{path}: no such file, neither here nor among those of cram-composer in {shared_dir()}")


def protocol_file(name: str) -> Path:
    """The YAML of an evaluation protocol: one of `yamls/eval`, by its name, or a file. Raises ConfigError."""
    return _named(name, "eval", f"--suite {name}: there is no such protocol")


def sweep_file(name: str) -> Path:
    """The YAML of a sweep: one of `yamls/sweeps`, by its name, or a file. Raises ConfigError."""
    return _named(name, "sweeps", f"{name}: there is no such sweep")


def _named(name: str, folder_name: str, complaint: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return find_shared(Path(name))
    folder = shared_dir() / "yamls" / folder_name
    if not (folder / f"{name}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ConfigError(f"{complaint}; there are {known}, or give a YAML file")
    return folder / f"{name}.yaml"


def expand(path: str) -> Path:
    """A path with `~` and `$VARIABLES` replaced; an unset `$CRAM_CACHE` is `~/.cache/cram-composer`."""
    return Path(Template(path).safe_substitute({"CRAM_CACHE": "~/.cache/cram-composer"} | os.environ)).expanduser()
