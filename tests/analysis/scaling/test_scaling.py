"""Recovery of laws with known parameters, and prediction of longer runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cram_composer.analysis.runs.run import load_run
from cram_composer.analysis.scaling.law import DELTA, PowerLaw, fit
from cram_composer.analysis.scaling.points import Point, read_points
from cram_composer.analysis.scaling.prediction import fit_scaling, optimal_exponent, optimum, parameters_of, predict
from cram_composer.analysis.scaling.text import console_text
from cram_composer.cli import main
from cram_composer.errors import CramError
from tests.analysis.conftest import CONFIG, DATA

# Besiroglu et al. 2024 (arXiv 2404.10102), their refit of Hoffmann et al.'s data.
TRUE = PowerLaw(1.8172, np.array([482.01, 2085.43]), np.array([0.3478, 0.3658]), 0.0)
SIZES, LENGTHS = np.geomspace(1e6, 1e8, 4), np.geomspace(2e7, 3e9, 5)
X = np.array([(size, length) for size in SIZES for length in LENGTHS])


def points(noise: float, seed: int = 0, x: np.ndarray = X) -> list[Point]:
    losses = TRUE.loss(x) * np.exp(np.random.default_rng(seed).normal(0.0, noise, len(x)))
    return [
        Point(f"{size:.0f}-{tokens:.0f}", size, tokens, loss, 6 * size, 1e13 / (6 * size))
        for (size, tokens), loss in zip(x, losses, strict=True)
    ]


def test_a_law_without_noise_is_found_exactly() -> None:
    law = fit(X, TRUE.loss(X), resamples=2).law
    assert law.floor == pytest.approx(TRUE.floor, rel=1e-6)
    assert law.scales == pytest.approx(TRUE.scales, rel=1e-5)
    assert law.exponents == pytest.approx(TRUE.exponents, rel=1e-6)


def test_parameters_of_a_noisy_law_are_inside_their_intervals() -> None:
    found = fit_scaling(points(0.004))
    truth = [1.8172, 482.01, 0.3478, 2085.43, 0.3658]
    assert found.law is not None
    for (name, _, low, high), value in zip(parameters_of(found.law, ("N", "D")), truth, strict=True):
        assert low <= value <= high, name
        assert high - low < 2.5 * value, name  # the intervals are informative
    assert found.law.spread == pytest.approx(0.004, rel=0.4)
    value, low, high = optimal_exponent(found.law)
    assert low <= 0.3658 / (0.3478 + 0.3658) <= high


def test_a_run_that_went_wrong_does_not_bend_the_law() -> None:
    losses = TRUE.loss(X)
    losses[7] *= 1.3
    law = fit(X, losses, resamples=2).law
    assert law.exponents == pytest.approx(TRUE.exponents, rel=0.02)
    design = np.log(X)  # least squares is not robust: the same outlier moves a linear fit
    design = np.column_stack([np.ones(len(X)), design])
    moved = (
        np.linalg.lstsq(design, np.log(losses), rcond=None)[0]
        - np.linalg.lstsq(design, np.log(TRUE.loss(X)), rcond=None)[0]
    )
    assert np.abs(np.exp(moved[0]) - 1) > 0.02


def test_the_fit_is_the_lowest_point_of_hubers_loss() -> None:
    """No small step in any parameter lowers the objective, which is recomputed here."""
    given = points(0.01)
    loss = np.array([point.loss for point in given])
    law = fit(X, loss, resamples=2).law

    def objective(values: np.ndarray) -> float:
        shifted = PowerLaw(values[0], values[1:3], values[3:], 0.0)
        size = np.abs(np.log(shifted.loss(X)) - np.log(loss))
        return float(np.where(size < DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum())

    best = np.array([law.floor, *law.scales, *law.exponents])
    assert objective(best) == pytest.approx(law.objective)
    random = np.random.default_rng(0)
    for _ in range(300):
        step = random.normal(0.0, 1.0, 5) * best * 10.0 ** random.uniform(-6, -2)
        assert objective(best + step) >= law.objective * (1 - 1e-5)


def test_longer_runs_are_predicted_by_shorter_ones() -> None:
    far = np.array([(1e8, 3e10), (3e8, 1e10)])
    found = fit_scaling(points(0.004, seed=1, x=np.concatenate([X, far])), hold_back=2)
    assert {one.point.tokens for one in found.held_back} == {1e10, 3e10}
    for one in found.held_back:
        value, low, high = one.predicted
        assert low <= one.point.loss <= high
        assert value == pytest.approx(one.point.loss, rel=0.02)
        assert high - low < 0.1 * value
    assert "inside" in console_text(found)


def test_the_best_size_is_where_the_law_says() -> None:
    found = fit_scaling(points(0.0))
    seconds, flops = 3.6e5, 1e13
    best = optimum(found, seconds)
    # Hoffmann et al. 2022, equation 4: N = G (C / 6)^(b / (a + b)), G = (a A / (b B))^(1 / (a + b)).
    (a, b), (big_a, big_b) = TRUE.exponents, TRUE.scales
    size = (a * big_a / (b * big_b)) ** (1 / (a + b)) * (flops * seconds / 6) ** (b / (a + b))
    assert best.parameters[0] == pytest.approx(size, rel=0.01)
    assert best.tokens == pytest.approx(flops * seconds / (6 * size), rel=0.01)
    assert best.outside == (size > 1e8)
    assert optimum(found, seconds, flops_per_second=2 * flops).parameters[0] == pytest.approx(
        size * 2 ** (b / (a + b)), rel=0.01
    )
    assert predict(found, size, best.tokens)[0] == pytest.approx(best.loss[0], rel=1e-3)


def test_compute_alone_is_fitted_on_the_frontier() -> None:
    found = fit_scaling([point for point in points(0.0) if point.parameters < 1e7])
    assert found.law is None
    assert "2 sizes" in found.missing
    flops = {point.name: point.flops for point in found.points}
    losses = {point.name: point.loss for point in found.points}
    for name in found.frontier:
        assert not any(flops[o] <= flops[name] and losses[o] < losses[name] for o in flops)
    assert found.compute is not None
    # A worse run with marginally fewer FLOPs does not join the frontier.
    worse = replace(found.points[0], name="worse", tokens=found.points[0].tokens * 0.999, loss=99.0)
    assert fit_scaling([*found.points, worse]).frontier == found.frontier
    with pytest.raises(CramError, match="cannot compute the best size"):
        optimum(found, 60.0)


def test_runs_held_back_are_predicted_by_compute_where_there_is_no_law_in_sizes() -> None:
    found = fit_scaling([point for point in points(0.0) if point.parameters < 1e7], hold_back=2)
    assert found.law is None and len(found.held_back) == 2
    for one in found.held_back:
        assert one.predicted[1] <= one.predicted[0] <= one.predicted[2]
        assert one.predicted == found.compute.predict(np.array([one.point.flops]))


def test_a_run_at_a_constant_rate_is_left_out_beside_others(make_run: Any) -> None:
    decayed = make_run("decayed", budget=20.0, config={**CONFIG, "schedule": {"name": "wsd", "final": 0.0}})
    trunk = make_run("trunk", budget=20.0, config={**CONFIG, "schedule": {"name": "constant"}})
    read, notes = read_points([load_run(decayed), load_run(trunk)])
    assert [point.name for point in read] == ["decayed"]
    assert "left out 1 runs whose learning rate did not decay" in notes
    assert len(read_points([load_run(trunk)])[0]) == 1  # kept if no run decayed


def test_embeddings_are_left_out_of_sizes_on_request(make_run: Any) -> None:
    counted = load_run(make_run("counted", budget=20.0, parameters=3_000_000, embedding_parameters=2_000_000))
    assert [read_points([counted], embeddings)[0][0].parameters for embeddings in (True, False)] == [3e6, 1e6]
    with pytest.raises(CramError, match="does not count embeddings; leave out --non-embedding"):
        read_points([load_run(make_run("older", budget=20.0))], embeddings=False)


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(CramError, match="2 runs of 1 sizes and 2 lengths are too few"):
        fit_scaling(points(0.0)[:2])


@pytest.fixture
def folder(make_run: Any, tmp_path: Path) -> Path:
    for place, point in enumerate(points(0.004)):
        path = make_run(
            f"run-{place}",
            budget=20.0,
            metrics={"validation_loss": point.loss},
            parameters=int(point.parameters),
            tokens=int(point.tokens),
            flops_per_token=point.flops_per_token,
            tokens_per_second=point.tokens_per_second,
        )
        path.rename(tmp_path / f"run-{place}")
    return tmp_path


def test_the_command_fits_predicts_and_finds_the_best_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = folder / "scaling.html"
    arguments = ["scaling-law", str(folder), "--hold-back", "1", "--predict", "1e8,1e10", "--budget", "10h"]
    assert main([*arguments, "--output", str(page)]) == 0
    said = capsys.readouterr().out
    for text in (
        "19 runs",
        "loss = E + A / parameters^a + B / tokens^b",
        "run-19",
        "best in 10 h at the runs' own speed",
    ):
        assert text in said
    html = page.read_text(encoding="utf-8")
    for shown in (
        "Loss against FLOPs",
        "Final held-out loss (nats per token) and the law",
        "Predictions of held-back runs",
    ):
        assert shown in html
    assert "http" not in html
    assert main([*arguments, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["law"]["exponent of tokens"]["value"] == pytest.approx(0.3658, rel=0.05)
    assert values["predicted"][1] <= TRUE.loss(np.array([1e8, 1e10])) <= values["predicted"][2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--predict", "1e8"], "--predict 1e8: expected parameters and tokens"),
        (["--hold-back", "20"], "must be below the number of finished runs, 20"),
        (["--flops-per-second", "1e12"], "--flops-per-second: must be > 0, and requires --budget"),
        (["--budget", "soon"], "'soon' is not a duration"),
        (["seeed=1"], "did you mean 'seed'"),
    ],
)
def test_bad_requests_are_one_line(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scaling-law", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_folders_without_a_finished_run_are_refused(make_run: Any, tmp_path: Path, capsys: Any) -> None:
    make_run("failed", budget=20.0, status="failed").rename(tmp_path / "failed")
    assert main(["scaling-law", str(tmp_path)]) == 2
    assert "no finished run among 1 runs" in capsys.readouterr().err


def test_runs_on_different_data_are_refused(make_run: Any) -> None:
    runs = [load_run(make_run("a", budget=20.0)), load_run(make_run("b", budget=20.0, data={**DATA, "seed": 18}))]
    with pytest.raises(CramError, match="not comparable: data: starter"):
        read_points(runs)
