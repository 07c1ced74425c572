"""`cram --version`: versions of cram-composer and of the libraries, GPU and driver it runs on."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from typing import Any

from cram_composer import __version__
from cram_composer.jobs.nvml import open_nvml

_LIBRARIES = {
    "torch": "torch",
    "composer": "mosaicml",
    "streaming": "mosaicml-streaming",
    "transformers": "transformers",
}


class ShowVersion(argparse.Action):
    """Print the versions and exit."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print to stdout."""
        print(version_text())
        parser.exit()


def version_text() -> str:
    """Return one line per version. Reads package metadata and NVML only, because importing torch takes seconds."""
    versions = {"cram-composer": __version__, "python": platform.python_version()}
    for name, package in _LIBRARIES.items():
        try:
            versions[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    versions["gpu"] = _gpus() or "none"
    return "\n".join(f"{name} {version}" for name, version in versions.items())


def _gpus() -> str:
    """Return the names of the GPUs and the version of the driver; empty without an NVIDIA driver."""
    with open_nvml() as nvml:
        if nvml is not None:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            names = [nvml.nvmlDeviceGetName(handle) for handle in handles]
            return f"{', '.join(names)} (driver {nvml.nvmlSystemGetDriverVersion()})" if names else ""
    return ""
