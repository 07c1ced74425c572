"""Worth of a difference on the baseline's curve over budgets."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

from cram_composer.analysis.compare.groups import Group, make_group
from cram_composer.analysis.compare.worth import worth
from cram_composer.analysis.runs.run import load_run
from cram_composer.cli import main
from cram_composer.errors import CramError

SLOPE = -0.5  # nats for each factor of e of the budget


def loss_at(seconds: float) -> float:
    return 4.0 + SLOPE * math.log(seconds / 600.0)


def groups(make_seeds, name: str, noise: float, gain: float = 0.1, seed: int = 0) -> tuple[Group, list[Group]]:
    """Return a challenger at 600 s that is `gain` better, and the baseline at 300, 600 and 1200 s; three seeds each."""
    random = np.random.default_rng(seed)

    def make(label: str, mean: float, seconds: float, **changes) -> Group:
        losses = mean + random.normal(0.0, noise, 3)
        paths = make_seeds(f"{name}-{label}", losses, budget=seconds, **changes)
        return make_group(label, [load_run(path) for path in paths])

    curve = [make(f"base-{seconds}", loss_at(seconds), seconds) for seconds in (300.0, 600.0, 1200.0)]
    return make("muon", loss_at(600.0) - gain, 600.0, settings={"optimizer.name": "muon"}), curve


def test_without_noise_it_is_exact_and_the_order_of_the_groups_does_not_matter(make_seeds) -> None:
    challenger, curve = groups(make_seeds, "exact", 1e-9)
    for order in (curve, curve[::-1]):
        found = worth(challenger, order)
        assert [found.low, found.ratio, found.high] == pytest.approx([math.exp(0.1 / -SLOPE)] * 3, rel=1e-6)


def test_a_worse_challenger_needs_more_and_far_ones_have_no_answer(make_seeds) -> None:
    challenger, curve = groups(make_seeds, "worse", 1e-9, gain=-0.1)
    assert worth(challenger, curve).ratio == pytest.approx(math.exp(-0.2), rel=1e-6)
    challenger, curve = groups(make_seeds, "far", 1e-9, gain=1.0)
    assert worth(challenger, curve).ratio is None  # beyond 2400 s
    challenger, curve = groups(make_seeds, "near", 1e-9, gain=0.5)
    assert worth(challenger, curve).ratio == pytest.approx(math.exp(1.0), rel=1e-6)  # between 1200 and 2400 s


def test_the_interval_contains_the_truth_as_often_as_it_says(make_seeds) -> None:
    random = np.random.default_rng(1)
    challenger, curve = groups(make_seeds, "cover", 0.0)
    inside = 0
    for _ in range(200):
        for group, mean in zip(
            [challenger, *curve], [loss_at(600.0) - 0.1, *map(loss_at, (300, 600, 1200))], strict=True
        ):
            for run in group.runs:
                run.record["metrics"]["validation_loss"] = float(mean + random.normal(0.0, 0.02))
        found = worth(challenger, curve)
        assert found.low is not None and found.high is not None
        inside += found.low <= math.exp(0.2) <= found.high
    assert 0.90 < inside / 200 <= 0.995


def test_what_makes_no_curve_is_one_line(make_seeds) -> None:
    challenger, curve = groups(make_seeds, "wrong", 0.01)
    with pytest.raises(CramError, match="needs groups of the baseline at two or more budgets"):
        worth(challenger, curve[1:2])
    with pytest.raises(CramError, match=r"differ in more than their budget: optimizer\.name"):
        worth(challenger, [challenger, *curve])
    with pytest.raises(CramError, match="no group of the baseline has the budget of muon"):
        worth(challenger, [curve[0], curve[2]])


def test_the_command_says_it(make_seeds, capsys, tmp_path) -> None:
    challenger, curve = groups(make_seeds, "command", 0.01)
    for number, group in enumerate((*curve, challenger)):
        for run in group.runs:
            shutil.copytree(run.path, tmp_path / f"{number}-{run.get('config.seed')}")
    folders = [f"{tmp_path}/{number}-*" for number in range(4)]
    arguments = [f"base={folders[1]}", f"muon={folders[3]}", "--curve", f"short={folders[0]}", f"long={folders[2]}"]
    assert main(["compare", *arguments, "--output", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "base needs 1." in said and "so muon is worth" in said and "less of the budget" in said
    assert "so muon is worth" in (tmp_path / "page.html").read_text()
    assert main(["compare", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["comparisons"][0]["worth"]
    assert 1.05 < found["low"] < found["ratio"] < found["high"] < 1.45
