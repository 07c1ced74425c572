"""Check for optional packages before anything else of a run is prepared."""

from __future__ import annotations

from cram_composer.config.packages import require_package
from cram_composer.config.schema.run import RunConfig


def check_extras(config: RunConfig, device: str) -> None:
    """Raise CramError if the run on `device` ("cpu" or "gpu") needs an optional package that is not installed."""
    needed = {  # key: package, whether the run needs it, the extra that installs it
        "scaleout.strategy": ("deepspeed", config.scaleout.strategy == "deepspeed", "deepspeed"),
        "optimizer.name": ("bitsandbytes", config.optimizer.name == "adamw-8bit" and device == "gpu", None),
        "logging.wandb": ("wandb", config.logging.wandb is not None, "wandb"),
        "logging.mlflow": ("mlflow", config.logging.mlflow is not None, "mlflow"),
    }
    for key, (package, is_needed, extra) in needed.items():
        if is_needed:
            require_package(package, key, extra)
