"""Values that would exhaust the machine, mean nothing or name nothing: one line each, before any work."""

from __future__ import annotations

import random
from pathlib import Path
from typing import get_args

import pytest
from annotated_types import Le, Lt
from pydantic.fields import FieldInfo

from benchmarks.fuzz_configurations import BASE, draw, keys
from cram_composer.config import compose_run
from cram_composer.config.schema.data import CurriculumPointConfig, StreamWeightConfig
from cram_composer.config.schema.data_build import DataBuildConfig, FilesConfig
from cram_composer.config.schema.evaluation import PROTOCOLS, TaskSettingsConfig
from cram_composer.config.schema.introspect import members
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.schema.sweep import SweepConfig
from cram_composer.errors import ConfigError, CramError

CPU = "yamls/cram-cpu.yaml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.mixture={train: {choose: 100000000000}}", "data.mixture.train.choose: must be <= 10000000, got 1000"),
        ("train.threads=100000", "train.threads: must be <= 1024, got 100000"),
        ("optimizer.lr=1e30", "optimizer.lr: must be <= 100, got 1e+30"),
        ("optimizer.lr=.nan", "optimizer.lr: must be a finite number, got nan"),
        ("optimizer.lr=1e400", "optimizer.lr: must be a finite number, got inf"),
        ("model.num_attention_heads=256", "model.hidden_size: 128 is not divisible by num_attention_heads=256"),
        ("model.num_attention_heads=128", "model.num_attention_heads: head width must be even with positions=rotary"),
        ("checkpoint.branch_at=[[]]", "checkpoint.branch_at.0: must be a number, got []"),
        ("seed=-1", "seed: must be >= 0, got -1"),
        ("seed=4294967296", "seed: must be < 4294967296, got 4294967296"),
        ("budget=99999999999999999999d", "budget.wall: '99999999999999999999d': the duration must be > 0 and at most"),
        ("data.cache_limit=99999999999999999999tb", "data.cache_limit: '99999999999999999999tb': the size must be"),
        ("runs_dir=~nouser", "runs_dir: '~nouser': no home folder for '~nouser'; write the path in full"),
        ("runs_dir=''", "runs_dir: must be a path, got ''"),
        ("data.local=' '", "data.local: must be a path, got ' '"),
        ("runs_remote=''", "runs_remote: must be a path, got ''"),
        ("run_name=../other", "run_name: '../other' is not a plain relative path; use a name such as my-run"),
        ("run_name=/tmp/x", "run_name: '/tmp/x' is not a plain relative path"),
        ("recipes.0=ema", "recipes.0: cannot be set alone; name the whole list, such as recipes=[crammed-bert,ema]"),
        ("seed=???", "seed: ??? marks a missing value; set a value (set on the command line)"),
        ("export.sentences=['???']", "export.sentences.0: ??? marks a missing value"),
        ("optimizer=???", "optimizer: ??? marks a missing value"),
        ("seed.0=1", "seed: must be an integer, got {'0': 1}"),
        ("export.sentences.0=x", "export.sentences: must be a list, got {'0': 'x'}"),
        ("0=1", "0: unknown key"),
        ("optimizer.betas.7=0.5", "optimizer.betas[7]: list index out of range"),
        (f"seed={'x' * 10_000}", "seed: must be an integer, got 'xxx"),
    ],
)
def test_a_hostile_value_is_one_short_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_run(CPU, [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("overrides", [{"hidden_size": 0}, {"num_attention_heads": 0}, {"num_attention_heads": "x"}])
def test_a_hostile_value_for_transformers_is_one_line(overrides: dict) -> None:
    settings = ["model.architecture=hf", "model.hf_name=bert", f"model.hf_overrides={overrides}"]
    with pytest.raises(ConfigError, match=r"^model\.hf_overrides") as caught:
        compose_run("yamls/cram-1gpu.yaml", ["recipes=[]", "model=null", *settings])
    assert "\n" not in str(caught.value)


def test_a_missing_value_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("budget: 1h\nmodel:\n  hidden_size: ???\n")
    with pytest.raises(ConfigError) as caught:
        compose_run(path, [])
    assert str(caught.value) == f"model.hidden_size: ??? marks a missing value; set a value (set in {path})"


def test_an_item_of_a_list_can_be_set() -> None:
    assert compose_run(CPU, ["optimizer.betas.0=0.5"]).config.optimizer.betas[0] == 0.5


def limits(field: FieldInfo) -> list[object]:
    """Return the limits of a field, and those of the members of its union."""
    members = [limit for member in get_args(field.annotation) for limit in getattr(member, "__metadata__", ())]
    return [*field.metadata, *(limit for member in members for limit in getattr(member, "metadata", ()))]


_IN_COLLECTIONS = [StreamWeightConfig, CurriculumPointConfig, FilesConfig, TaskSettingsConfig]


@pytest.mark.parametrize("schema", [RunConfig, DataBuildConfig, SweepConfig, *PROTOCOLS.values(), *_IN_COLLECTIONS])
def test_every_number_has_an_upper_bound(schema: type) -> None:
    numbers = [(key, field) for key, field in keys(schema) if {int, float} & set(members(field.annotation))]
    unbounded = [key for key, field in numbers if not any(isinstance(limit, Le | Lt) for limit in limits(field))]
    assert numbers and unbounded == []


@pytest.mark.parametrize("number", range(30))
def test_a_random_configuration_composes_or_is_refused_in_one_line(number: int) -> None:
    overrides = draw(random.Random(f"1 {number}"))
    try:
        compose_run(CPU, [*BASE, "data.local=data", *overrides])
    except CramError as error:
        assert "\n" not in str(error), overrides
