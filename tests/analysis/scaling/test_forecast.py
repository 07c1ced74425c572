"""Which of two recipes wins at the next size: differences of a known line, and forecasts that were right or wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import linregress, t

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
            values: dict[str, Any] = {
                "config": {**CONFIG, "model": model, "seed": seed},
                "metrics": {"validation_loss": loss},
            }
            values |= {"parameters": SHAPES[shape], **replaced}
            path = make_run(f"{name}-{shape}-{seed}", budget=seconds, **values)
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
    """-0.3 nats at 1 M parameters and 0.08 less per doubling: +0.02 at 16 M. One mean is 0.01 off the line."""
    noise = [0.001, -0.001]
    means = {"2x64": -0.3, "3x96": -0.22, "4x128": -0.14 + 0.01, "6x192": -0.06}
    found = compared(make_run, "line", {shape: [mean + e for e in noise] for shape, mean in means.items()})
    assert [size.shape for size in found.sizes] == list(SHAPES)
    forecasts = [size.forecast for size in found.sizes]
    assert forecasts[0] is None and forecasts[1:] == pytest.approx([-0.3, -0.14, -0.65 / 3 + 0.17])
    assert [size.is_right for size in found.sizes] == [None, True, True, True]
    expected = linregress(range(4), list(means.values()))
    half = t.ppf(0.975, 2) * expected.stderr
    slope = expected.slope
    assert found.slope == pytest.approx((slope, slope - half, slope + half))
    assert found.next_parameters == pytest.approx(16e6)
    assert found.next_difference is not None
    assert found.next_difference[0] == pytest.approx(expected.intercept + 4 * slope)
    error = half * (1 / 4 + 2.5**2 / 5) ** 0.5 * 5**0.5
    assert found.next_difference[2] - found.next_difference[0] == pytest.approx(error)
    assert forecast_sentences(found)[0].endswith("3 of 3 right")
    assert "the slope of the curve differs" in forecast_sentences(found)[1]


def test_a_wrong_forecast_counts_and_an_undecided_size_does_not(make_run: MakeRun) -> None:
    found = compared(
        make_run,
        "wrong",
        {"2x64": [-0.1, -0.11], "3x96": [0.1, 0.11], "4x128": [0.2, -0.21], "6x192": [-0.1, -0.11]},
    )
    assert [size.is_decided for size in found.sizes] == [True, True, False, True]
    assert [size.is_right for size in found.sizes] == [None, False, None, False]
    assert forecast_sentences(found)[0].endswith("0 of 2 right")
    assert "a mere shift of the curve is not ruled out" in forecast_sentences(found)[1]


def test_only_budgets_of_all_sizes_count(make_run: MakeRun) -> None:
    both = {"2x64": [5.0], "3x96": [5.0]}
    ours = [*runs(make_run, "short-a", both), *runs(make_run, "long-a", {"2x64": [4.0]}, 40.0)]
    theirs = [*runs(make_run, "short-b", both), *runs(make_run, "long-b", {"2x64": [5.0]}, 40.0)]
    found = forecast(ours, theirs)
    assert [size.mean for size in found.sizes] == [0.0, 0.0]
    assert found.notes == ["left out 1 pairs whose budget not all sizes have"]


def test_unfinished_runs_and_sizes_without_embeddings(make_run: MakeRun) -> None:
    counted = {"embedding_parameters": 600_000}
    ours = runs(make_run, "left-a", {"2x64": [4.0], "3x96": [4.0]}, **counted)
    theirs = runs(make_run, "left-b", {"2x64": [5.0], "3x96": [5.0]}, **counted)
    running = load_run(make_run("left-running", budget=20.0, running=True))
    found = forecast([*ours, running], theirs, embeddings=False)
    assert [size.parameters for size in found.sizes] == [4e5, 1.4e6]
    assert found.notes == ["left out 1 unfinished runs"]
    same = runs(make_run, "same-b", {"2x64": [5.0], "3x96": [5.0]}, parameters=1e6)
    with pytest.raises(CramError, match="sizes 2x64, 3x96 hardly differ in parameters"):
        forecast(ours, same)


def test_two_sizes_give_one_forecast_and_no_line(make_run: MakeRun) -> None:
    found = compared(make_run, "two", {"2x64": [-0.1], "3x96": [-0.2]})
    assert found.slope is None and found.next_difference is None and len(forecast_sentences(found)) == 1


def test_only_runs_of_equal_conditions_are_pairs(make_run: MakeRun) -> None:
    ours = runs(make_run, "pairs-a", {"2x64": [4.0, 4.0], "3x96": [4.0]})
    theirs = runs(make_run, "pairs-b", {"2x64": [5.0], "3x96": [5.0, 5.0], "4x128": [5.0]})
    assert [len(size.differences) for size in forecast(ours, theirs).sizes] == [1, 1]
    with pytest.raises(CramError, match="--against: 1 sizes have runs of both"):
        forecast(ours[:2], theirs)
    with pytest.raises(CramError, match="have equal layers, hidden size, budget and seed; select one"):
        forecast([*ours, ours[0]], theirs)


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
    arguments = ["scaling-law", str(tmp_path / "new"), "--against", str(tmp_path / "old")]
    assert main([*arguments, "--output", str(page)]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 right" in said and "M parameters: -0.1000 nats" in said
    assert "Against another recipe" in page.read_text(encoding="utf-8")
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["against"]["per_doubling"][0] == pytest.approx(0.0, abs=1e-9)


def test_two_sizes_at_one_budget_need_no_law(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, better in (("new", 0.1), ("old", 0.0)):
        for run in runs(make_run, f"lawless-{name}", {"2x64": [6.0 - better] * 2, "3x96": [5.0 - better] * 2}):
            (tmp_path / name).mkdir(exist_ok=True)
            run.path.rename(tmp_path / name / run.path.name)
    arguments = ["scaling-law", str(tmp_path / "new"), "--against", str(tmp_path / "old")]
    assert main([*arguments, "--output", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "are too few for a law" in said and "1 of 1 right" in said
    assert main([*arguments, "--predict", "1e6,1e7", "--json"]) == 2
    assert "are too few for a law" in capsys.readouterr().err
