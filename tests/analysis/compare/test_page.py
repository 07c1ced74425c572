"""The page of a comparison: self-contained, complete without scripts, with the right geometry for its script."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cram_composer.analysis.compare.compare import compare
from cram_composer.analysis.compare.figures import draw_final_losses, draw_losses
from cram_composer.analysis.compare.groups import Group, make_group
from cram_composer.analysis.compare.measures import curve
from cram_composer.analysis.compare.page import _title, differences, write_comparison
from cram_composer.analysis.html.style import to_inline_svg
from cram_composer.analysis.runs.run import load_run
from cram_composer.cli import main
from cram_composer.errors import CramError
from tests.analysis.report.test_report import Reader


@pytest.fixture(scope="module")
def groups(make_seeds) -> list[Group]:
    folders = {
        "base": make_seeds("base", [4.20, 4.22], flops_per_token=2e7),
        "<muon>": make_seeds("muon", [4.10, 4.12], settings={"optimizer.name": "muon"}, flops_per_token=2e7),
    }
    return [make_group(name, [load_run(path) for path in paths]) for name, paths in folders.items()]


@pytest.fixture(scope="module")
def html(groups: list[Group], tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("page") / "compare.html"
    return write_comparison(groups, compare(groups, groups[0]), output).read_text(encoding="utf-8")


def test_the_page_is_self_contained(html: str) -> None:
    reader = Reader(re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL))
    assert len(reader.ids) == len(set(reader.ids))
    assert all(reference.startswith("#") and reference[1:] in reader.ids for reference in reader.references)
    assert not {"link", "iframe", "img"} & set(reader.tags)
    assert "http" not in html
    assert "<muon>" in reader.text
    assert "muon" not in reader.tags
    assert len(html.encode()) < 1_000_000


def test_the_main_figure_comes_first_and_verdicts_next(html: str) -> None:
    titles = ("figure-loss-wall-clock", "Is the difference real?", "<h2>&lt;muon&gt; against base", "The runs")
    places = [html.index(title) for title in titles]
    assert places == sorted(places)
    assert "4.1100" in html  # the mean of the challenger
    assert html.count('id="show-loss-') == 4


def test_differences_list_keys_without_seeds(groups: list[Group]) -> None:
    assert differences(groups).rows == [("optimizer.name", "adamw", "muon")]


def test_every_line_of_the_script_is_in_the_drawing(html: str) -> None:
    plots = json.loads(re.search(r'id="plots">(.*?)</script>', html, flags=re.DOTALL)[1])
    assert list(plots) == ["loss-wall-clock", "loss-tokens", "loss-flops", "loss-device-hours"]
    for name, plot in plots.items():
        assert [line["group"] for line in plot["lines"]] == [0, 1]
        for line in plot["lines"]:
            for part in ("line", "band", "dots"):
                assert f'id="{name}-{part}-{line["group"]}"' in html
            assert len(line["x"]) == len(line["y"]) > 50
            assert (np.diff(line["x"]) >= 0).all()


def test_a_line_is_the_mean_of_its_runs_and_the_band_their_range(groups: list[Group]) -> None:
    drawn = draw_losses(groups, "tokens")
    assert drawn is not None
    curves = [curve(run, "training", "tokens") for run in groups[0].runs]
    line = drawn.plot["lines"][0]
    size = curves[0].x[-1] / max(line["x"]) if curves[0].x[-1] < curves[1].x[-1] else curves[1].x[-1] / max(line["x"])
    losses = np.array([[one.at(x * size) or np.nan for x in line["x"][1:-1]] for one in curves])
    assert np.allclose(losses.mean(axis=0), line["y"][1:-1], rtol=1e-3)
    (axes,) = drawn.picture.figure.axes
    vertices = axes.collections[0].get_paths()[0].vertices
    assert vertices[:, 1].max() == pytest.approx(max(one.y[0] for one in curves), rel=0.05)
    assert len(axes.collections) == 2  # a band per group


def test_names_of_groups_are_wrapped_and_not_cut(make_seeds) -> None:
    names = ["all", "without value-embeddings", "crammed-bert+muon+input-skip+swiglu"]
    runs = [load_run(path) for path in make_seeds("base", [4.2, 4.3])]
    (axes,) = draw_final_losses([Group(name, runs) for name in names]).figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label.replace("+\n", "+").replace("-\n", "-").replace("\n", " ") for label in labels] == names
    assert max(len(line) for label in labels for line in label.split("\n")) <= 20


def test_titles_are_short(make_seeds, html: str) -> None:
    assert "<h1>&lt;muon&gt; against base, 2 seeds</h1>" in html
    groups = [
        Group(name, [load_run(path) for path in make_seeds("base", [4.2, 4.3, 4.1][:seeds])])
        for name, seeds in (("base", 3), ("b", 2), ("c", 3))
    ]
    assert _title(groups, compare(groups, groups[0])) == "2 variants against base, 2 to 3 seeds"


@pytest.mark.parametrize("axis", ["wall-clock", "FLOPs"])
def test_the_script_finds_a_point_where_it_is_drawn(groups: list[Group], axis) -> None:
    """The last point of a path, in SVG units, agrees with the box and limits given to the script."""
    drawn = draw_losses(groups, axis)
    assert drawn is not None
    path = re.search(r'id="[^"]*-line-0">\s*<path d="([^"]*)"', to_inline_svg(drawn.picture))
    assert path is not None
    x, y = map(float, re.findall(r"[ML] ([\d.]+) ([\d.]+)", path[1])[-1])
    plot, line = drawn.plot, drawn.plot["lines"][0]
    left, top, width, height = plot["box"]

    def share(value: float, limits: list[float], log: bool) -> float:
        low, high, value = (np.log(number) if log else number for number in (*limits, value))
        return (value - low) / (high - low)

    assert x == pytest.approx(left + width * share(line["x"][-1], plot["x"], plot["log"][0]), abs=0.2)
    assert y == pytest.approx(top + height * (1 - share(line["y"][-1], plot["y"], plot["log"][1])), abs=0.2)


def test_an_axis_that_no_run_has_is_left_out(make_seeds, tmp_path: Path) -> None:
    groups = [make_group(n, [load_run(p) for p in make_seeds(n, [4.2])]) for n in ("one", "other")]
    html = write_comparison(groups, compare(groups, groups[0]), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "figure-loss-flops" not in html
    assert "no verdict" in html
    with pytest.raises(CramError, match="is a folder"):
        write_comparison(groups, compare(groups, groups[0]), tmp_path)


def test_the_command_prints_and_writes_the_page(make_seeds, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [*make_seeds("base", [4.2, 4.21]), *make_seeds("lion", [4.6, 4.61], settings={"optimizer.name": "lion"})]
    page = tmp_path / "page.html"
    assert main(["compare", *map(str, paths), "--output", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "WORSE: lion is worse than base: held-out loss +0.4000 nats" in printed
    assert page.is_file()
    assert main(["compare", *map(str, paths), "--baseline", "lion", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["comparisons"][0]["verdict"]["word"] == "better"
