"""Strategies by their name in `scaleout.strategy`."""

from __future__ import annotations

import importlib

from cram_composer.config.schema.run import RunConfig
from cram_composer.device import DeviceChoice
from cram_composer.scaleout.strategy import Strategy

# Imported on use: Composer's FSDP2 and DeepSpeed take a second each.
STRATEGIES = {
    "auto": ("cram_composer.scaleout.strategy", "Strategy"),
    "ddp": ("cram_composer.scaleout.strategy", "Strategy"),
    "fsdp2": ("cram_composer.scaleout.fsdp2", "Fsdp2"),
    "deepspeed": ("cram_composer.scaleout.zero", "DeepSpeedZero"),
}


def build_strategy(config: RunConfig, device: DeviceChoice, world_size: int) -> Strategy:
    """Build the strategy of `config` for `world_size` devices."""
    module, name = STRATEGIES[config.scaleout.strategy]
    return getattr(importlib.import_module(module), name)(config, device, world_size)
