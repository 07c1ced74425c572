"""A run that needs an optional package without which it cannot train ends before anything is prepared."""

from __future__ import annotations

from pathlib import Path

import pytest

from cram_composer.cli import main
from cram_composer.config import compose_run, packages
from cram_composer.errors import CramError
from cram_composer.train.extras import check_extras


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_is_installed", lambda package: False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["scaleout=deepspeed"], "scaleout.strategy: needs the package deepspeed, which is not installed; run `pip"),
        (["logging.wandb={}"], "logging.wandb: needs the package wandb, which is not installed; run `pip install '.[w"),
        (["logging.mlflow={}"], "logging.mlflow: needs the package mlflow, "),
    ],
)
def test_a_missing_package_is_one_line(
    settings: list[str], says: str, without: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = main(["train", "yamls/cram-cpu.yaml", f"runs_dir={tmp_path / 'runs'}", *settings])
    error = capsys.readouterr().err
    assert done == 2 and says in error and "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_8_bits_need_bitsandbytes_and_other_runs_need_nothing(without: None) -> None:
    check_extras(compose_run("yamls/cram-cpu.yaml", []).config, "cpu")
    eight = compose_run("yamls/cram-gpu.yaml", ["optimizer.name=adamw-8bit"]).config
    with pytest.raises(CramError, match="needs the package bitsandbytes, .* run `pip install bitsandbytes`$"):
        check_extras(eight, "gpu")
