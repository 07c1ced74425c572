"""Which of two recipes wins at the next size: differences of a known line, and forecasts that were right or wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cram_composer.analysis.runs.run import RunData, load_run
from cram_composer.analysis.scaling.forecast import Forecast, forecast
from cram_composer.analysis.scaling.text import forecast_sentences
from cram_composer.cli import main
from cram_composer.errors import CramError
from tests.analysis.conftest import CONFIG, MakeRun

SHAPES = {"2x64": 1e6, "3x96": 2e6, "4x128": 4e6, "6x192": 8e6}


def runs(
    make_run: MakeRun, name: str, losses: dict[str, list[float]], seconds: float = 20.0, **replaced: Any
) -> list[RunData]:
    """Write runs of each shape with these losses, of seeds 1, 2, ..."""
    found = []
    for shape, of_shape in losses.items():
        layers, width = map(int, shape.split("x"))
        for seed, loss in enumerate(of_shape, 1):
            model = {**CONFIG["model"], "num_hidden_layers": layers, "hidden_size": width}
            values = {"config": {**CONFIG, "model": model, "seed": seed}, "metrics": {"validation_loss": loss}}
            path = make_run(f"{name}-{shape}-{seed}", budget=seconds, parameters=SHAPES[shape], **values, **replaced)
            found.append(load_run(path))
    return found


def compared(make_run: MakeRun, name: str, differences: dict[str, list[float]]) -> Forecast:
    base = {shape: [5.0 + 0.1 * seed for seed in range(len(of_shape))] for shape, of_shape in differences.items()}
    better = {
        shape: [loss + by for loss, by in zip(base[shape], of_shape, strict=True)]
        for shape, of_shape in differences.items()
    }
    return forecast(runs(make_run, f"{name}-a", better), runs(make_run, f"{name}-b", base))


def test_a_difference_that_fades_with_size_is_a_line(make_run: MakeRun) -> None:
    """-0.3 nats at 1 M parameters and 0.08 less per doubling: -0.3 + 0.08 x 4 at 16 M."""
    noise = [0.001, -0.001]
    found = compared(make_run, "line", {shape: [-0.3 + 0.08 * n + e for e in noise] for n, shape in enumerate(SHAPES)})
    assert [size.shape for size in found.sizes] == list(SHAPES)
    assert [size.forecast for size in found.sizes] == [
        None, *(pytest.approx(value, abs=1e-9) for value in (-0.3, -0.14, -0.06))
    ]  # fmt: skip
    assert [size.is_right for size in found.sizes] == [None, True, True, True]
    assert found.slope is not None and found.slope[0] == pytest.approx(0.08)
    assert found.slope[1] < 0.08 < found.slope[2] < 0.082
    assert found.next_parameters == 16e6
    assert found.next_difference is not None and found.next_difference[0] == pytest.approx(0.02)
    assert forecast_sentences(found)[0].endswith("3 of 3 right")
    assert "the slope of the curve differs" in forecast_sentences(found)[1]


def test_a_difference_of_noise_is_a_shift_and_forecasts_of_it_fail(make_run: MakeRun) -> None:
    noise = {"2x64": [-0.02, 0.01], "3x96": [0.02, 0.0], "4x128": [-0.02, -0.01], "6x192": [0.02, 0.01]}
    found = compared(make_run, "noise", noise)
    assert [size.is_right for size in found.sizes] == [None, False, False, False]
    assert "a shift of the curve explains it" in forecast_sentences(found)[1]


def test_two_sizes_give_one_forecast_and_no_line(make_run: MakeRun) -> None:
    found = compared(make_run, "two", {"2x64": [-0.1], "3x96": [-0.2]})
    assert found.slope is None and found.next_difference is None and len(forecast_sentences(found)) == 1


def test_only_runs_of_equal_conditions_are_pairs(make_run: MakeRun) -> None:
    ours = runs(make_run, "pairs-a", {"2x64": [4.0, 4.0], "3x96": [4.0]})
    theirs = runs(make_run, "pairs-b", {"2x64": [5.0], "3x96": [5.0, 5.0], "4x128": [5.0]})
    assert [len(size.differences) for size in forecast(ours, theirs).sizes] == [1, 1]
    with pytest.raises(CramError, match=re.escape("--against: 1 sizes have runs of both")):
        forecast(ours[:2], theirs)


def test_the_command_compares_two_sweeps(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, better in (("new", 0.1), ("old", 0.0)):
        for budget in range(3):
            for n, shape in enumerate(SHAPES):
                loss = {shape: [6.0 - 0.3 * budget - 0.2 * n - better]}
                amounts = {"tokens": 1e6 * 2**budget, "flops_per_token": 6 * SHAPES[shape]}
                (run,) = runs(make_run, f"{name}{budget}", loss, 20.0 * 2**budget, **amounts)
                (tmp_path / name).mkdir(exist_ok=True)
                run.path.rename(tmp_path / name / run.path.name)
    page = tmp_path / "page.html"
    arguments = ["scaling-law", str(tmp_path / "new"), "--against", str(tmp_path / "old"), "--output", str(page)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "3 of 3 right" in said and "M parameters: -0.1000 nats" in said
    assert "Against another recipe" in page.read_text(encoding="utf-8")
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["against"]["per_doubling"][0] == pytest.approx(0.0, abs=1e-9)
