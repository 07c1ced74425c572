"""Check for optional packages before anything else of a run is prepared."""

from __future__ import annotations

from importlib.util import find_spec

from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import CramError


def check_extras(config: RunConfig) -> None:
    """Raise CramError if the run needs an optional package that is not installed."""
    needed = {  # key: package, whether the run needs it, how to install it
        "scaleout.strategy": ("deepspeed", config.scaleout.strategy == "deepspeed", "'.[deepspeed]'"),
        "optimizer.name": ("bitsandbytes", config.optimizer.name == "adamw-8bit", "bitsandbytes"),
        "logging.wandb": ("wandb", config.logging.wandb is not None, "'.[wandb]'"),
        "logging.mlflow": ("mlflow", config.logging.mlflow is not None, "'.[mlflow]'"),
    }
    for key, (package, is_needed, install) in needed.items():
        if is_needed and find_spec(package) is None:
            where = " in the folder of cram-composer" if install.startswith("'") else ""
            raise CramError(
                f"{key}: needs the package {package}, which is not installed; run `pip install {install}`{where}"
            )
