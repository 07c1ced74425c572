"""The data section of a run: mistakes give one line before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from cram_composer.config import compose
from cram_composer.config.schema.data_build import DataBuildConfig
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.units import parse_bytes
from cram_composer.config.validation.run import check_run
from cram_composer.errors import ConfigError

RUN = Path(__file__).resolve().parents[3] / "yamls" / "cram-cpu.yaml"


def check(*overrides: str) -> RunConfig:
    config: RunConfig = compose(RunConfig, RUN, list(overrides)).config
    check_run(config, world_size=1)
    return config


def test_mixtures_and_curricula_are_read():
    config = check("data.mixture={wiki: {proportion: 0.3}, web: {proportion: 1}}")
    assert config.data.mixture["wiki"].proportion == 0.3
    config = check("data.curriculum=[{at: 0.0, proportions: {web: 1}}, {at: 0.5, proportions: {wiki: 1, web: 0}}]")
    assert [(point.at, dict(point.proportions)) for point in config.data.curriculum] == [
        (0.0, {"web": 1.0}),
        (0.5, {"wiki": 1.0, "web": 0.0}),
    ]
    check("data.remote=s3://b/d", "data.mirror=gs://b/d", "data.cache_limit=1.5gb")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.mixture={wiki: {proportion: -1}}"], "data.mixture.wiki.proportion: must be >= 0, got -1"),
        (
            ["data.mixture={wiki: {share: 1}}"],
            "data.mixture.wiki.share: unknown key; valid keys: choose, proportion, repeat",
        ),
        (["data.mixture={wiki: {repeat: 2, choose: 3}}"], "data.mixture.wiki: repeat and choose exclude each other"),
        (
            ["data.mixture={wiki: {repeat: 2}}", "data.curriculum=[{proportions: {wiki: 1}}]"],
            "data.curriculum: excludes data.mixture",
        ),
        (
            ["data.curriculum=[{at: 0.5, proportions: {a: 1}}, {at: 0.5, proportions: {a: 1}}]"],
            "data.curriculum: points must be in increasing order, got 0.5 after 0.5",
        ),
        (["data.curriculum=[{at: 1.5, proportions: {a: 1}}]"], "data.curriculum.0.at: must be <= 1, got 1.5"),
        (["data.curriculum=[{proportions: {a: 0}}]"], "proportions: must be >= 0 and not all zero"),
        (["data.curriculum=[{proportions: {a: 1, b: -1}}]"], "data.curriculum.0.proportions.b: must be >= 0, got -1"),
        (["data.deadline=soon"], "data.deadline: 'soon' is not a duration"),
        (["data.cache_limit=50"], "data.cache_limit: '50' is not a size"),
        (
            ["data.build=null", "data.local=/d", "data.mirror=s3://b/d"],
            "data.mirror: has no effect without data.remote",
        ),
        (["data.remote=s3://b/d", "data.deadline=5m"], "data.timeout: must be longer than data.deadline"),
        (["data.remote=s3://b/d", "data.mirror=s3://c/d", "data.deadline=3m"], "number of copies \\(360 s\\)"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message) as error:
        check(*overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "size"), [("1kb", 1024), ("50gb", 50 << 30), ("1.5 TB", 3 << 39), ("7b", 7)])
def test_sizes(text: str, size: int):
    assert parse_bytes(text) == size


def test_the_language_of_a_text_is_a_code():
    path = RUN.parent / "data" / "starter.yaml"
    assert compose(DataBuildConfig, path, ["language=en"]).config.language == "en"
    with pytest.raises(ConfigError, match="language: must be an ISO 639 code such as en, or multi.*, got 'English'"):
        compose(DataBuildConfig, path, ["language=English"])
