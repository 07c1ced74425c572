"""Optional packages."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from cram_composer.errors import CramError


def require_package(package: str, what: str, extra: str | None = None, instead: str = "") -> None:
    """Raise CramError if a package is not installed.

    Args:
        package: name of the package.
        what: the setting that needs it.
        extra: extra of this project that installs it; None: the package is installed by its own name.
        instead: what else the user can do.
    """
    if not _is_installed(package):
        install = package if extra is None else f"'.[{extra}]'"
        where = "" if extra is None else " in the folder of cram-composer"
        raise CramError(
            f"{what}: needs the package {package}, which is not installed; run `pip install {install}`{where}{instead}"
        )


def _is_installed(package: str) -> bool:
    return sys.modules.get(package) is not None or find_spec(package) is not None
