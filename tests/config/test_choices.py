"""One override selects any optimizer or schedule in every shipped run, and resets the previous one's settings."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from cram_composer.config import compose_run
from cram_composer.config.schema.introspect import sections, tag
from cram_composer.config.schema.optimizer import OptimizerConfig
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.schema.schedule import ScheduleConfig
from cram_composer.errors import ConfigError
from tests.conftest import REPOSITORY

YAMLS = sorted((REPOSITORY / "yamls").glob("*.yaml"), key=str)
OPTIMIZERS = [tag(section) for section in sections(OptimizerConfig)]
SCHEDULES = [tag(section) for section in sections(ScheduleConfig)]
# Optimizers that ZeRO and FSDP2 do not support (docs/reference/strategies.md) or that need a GPU: one line.
ZERO_CANNOT = {"adafactor", "adamw-8bit", "lamb", "muon", "schedule-free", "shampoo", "soap", "sophia", "stableadamw"}
FSDP2_CANNOT = {"adafactor", "adamw-8bit", "shampoo", "soap", "sophia", "stableadamw"}
CPU_CANNOT = {"adamw-8bit"}
CANNOT = {
    "cram-8gpu-deepspeed": ZERO_CANNOT,
    "cram-8gpu-fsdp2": FSDP2_CANNOT,
    "cram-cpu": CPU_CANNOT,
    "cram-2core": CPU_CANNOT,
    "cram-babylm": CPU_CANNOT,
}


def devices(path: Path) -> int:
    return 8 if "8gpu" in path.name else 1


@functools.cache
def unchanged(path: Path) -> RunConfig:
    return compose_run(path, [], devices(path)).config


def test_there_are_as_many_as_documented():
    assert (len(OPTIMIZERS), len(SCHEDULES)) == (13, 11)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_composes_on_every_yaml(path: Path, name: str):
    if name in CANNOT.get(path.stem, ()):
        with pytest.raises(ConfigError, match=rf"scaleout\.strategy: .*optimizer\.name={name}|{name} needs a GPU"):
            compose_run(path, [f"optimizer.name={name}"], devices(path))
        return
    before = unchanged(path).optimizer
    after = compose_run(path, [f"optimizer.name={name}"], devices(path)).config.optimizer
    assert after.name == name
    assert (after.lr, after.groups) == (before.lr, before.groups), "the tuned rate and the groups stay"
    if name != before.name:
        assert after == type(after)(lr=before.lr, groups=before.groups), "all else is the optimizer's own default"


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_composes_on_every_yaml(path: Path, name: str):
    before = unchanged(path).schedule
    after = compose_run(path, [f"schedule.name={name}"], devices(path)).config.schedule
    assert after.name == name
    assert after == (before if name == before.name else type(after)())


def test_a_layer_may_set_what_it_chooses_in_any_order():
    for overrides in (
        ["optimizer.betas=[0.8,0.9]", "optimizer.name=lion"],
        ["optimizer={name: lion, betas: [0.8,0.9]}"],
    ):
        assert compose_run("yamls/cram-cpu.yaml", overrides).config.optimizer.betas == (0.8, 0.9)


def test_a_reset_value_is_shown_as_overridden():
    composed = compose_run("yamls/cram-cpu.yaml", ["optimizer.name=lion"])
    assert composed.provenance["optimizer.betas"] == "default"
    assert composed.overridden["optimizer.betas"] == [("recipe crammed-bert", [0.9, 0.98])]
    assert composed.provenance["optimizer.lr"] == "yamls/cram-cpu.yaml"
