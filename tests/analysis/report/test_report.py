"""The HTML report: self-contained, escaped, valid, small and reproducible byte by byte."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cram_composer.analysis.report import report
from cram_composer.analysis.report.report import follow_report, write_report
from cram_composer.config.schema.evaluation import MaskedWordsConfig, MinimalPairsConfig, ProtocolConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.results import Result
from cram_composer.evaluation.fine_tuning.suite import add_to_run
from cram_composer.evaluation.fine_tuning.table import model_row
from cram_composer.evaluation.zero_shot.score import SUITES

FIGURES = {"loss-wall-clock", "loss-tokens", "learning-rate", "batch-and-sequence", "throughput", "ledger"}
VOID = {"meta", "br", "wbr", "link", "img", "input"}


class Reader(HTMLParser):
    """HTML parser that checks that tags balance, and collects ids, references and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "xlink:href", "srcset", "action", "data"}:
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.fixture(scope="module")
def page_path(make_run) -> Path:
    return write_report([make_run(resumed=True)])


@pytest.fixture(scope="module")
def html(page_path: Path) -> str:
    return page_path.read_text(encoding="utf-8")


def test_the_page_and_its_figures_are_in_the_run_folder(page_path: Path) -> None:
    assert page_path.name == "report.html"
    assert (page_path.parent / "record.json").is_file()
    pictures = {path.stem: path.read_bytes() for path in (page_path.parent / "figures").iterdir()}
    assert set(pictures) == FIGURES
    assert all(png.startswith(b"\x89PNG") for png in pictures.values())


def test_numbers_of_the_record_are_on_the_page(html: str, page_path: Path) -> None:
    record = json.loads((page_path.parent / "record.json").read_text())
    text = Reader(html).text
    for number in ("4.214 nats/token", "6.914", "31.3 %", "6.079 bits/token", "12.35 M", "88.40", "91.2 %"):
        assert number in text
    assert f"in {record['steps']:,} steps" in text
    assert f"{record['ledger']['inside']['lost']:,.2f}" in text
    assert "not measured" in text  # the energy
    assert "lost to a kill" in text
    assert "compilation" in text


def test_the_page_is_self_contained(html: str) -> None:
    reader = Reader(html)
    assert len(reader.ids) == len(set(reader.ids))
    assert not {"script", "link", "iframe", "img"} & set(reader.tags)
    assert reader.references  # the figures refer to their own parts
    assert all(reference.startswith("#") and reference[1:] in reader.ids for reference in reader.references)
    for target in re.findall(r"url\(([^)]*)\)", html):
        assert target.startswith("#")
        assert target[1:] in reader.ids
    assert "@import" not in html
    assert "http" not in html


def test_colours_are_defined_for_light_and_dark(html: str) -> None:
    style = html[html.index("<style>") : html.index("</style>")]
    dark = "".join(re.findall(r"prefers-color-scheme: dark\) \{(.*?)\}\s*\}", style, flags=re.DOTALL))
    used = set(re.findall(r"var\(--([a-z0-9-]+)", html)) - {"run"}
    assert used
    assert used <= set(re.findall(r"--([a-z0-9-]+):", style))
    assert used <= set(re.findall(r"--([a-z0-9-]+):", dark))


def test_headings_are_unique(html: str) -> None:
    titles = re.findall(r"<h2[^>]*>([^<]*)<", html) + re.findall(r"<text[^>]*font-weight: 700[^>]*>([^<]*)<", html)
    assert "Where the time went" in titles
    assert len(titles) == len(set(titles)) > 12


def test_absolute_paths_are_shortened(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(provenance={"budget": "/somewhere/else/run.yaml", "seed": "recipe x"})
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text("{}")
    for folder, shown in (
        (run.parent, f"{run.name}/export"),
        (run.parent.parent, f"{run.parent.name}/{run.name}/export"),
    ):
        monkeypatch.chdir(folder)
        html = write_report([run]).read_text(encoding="utf-8")
        assert f"folder = &#39;{shown}&#39;" in html
        assert str(run.parent) not in html


def test_figures_and_tables_have_accessible_names(html: str) -> None:
    assert len(re.findall(r'<svg [^>]*role="img" aria-label="[^"]{40,}"', html)) == len(FIGURES)
    assert html.count("<table>") == html.count("<caption>") > 5
    assert html.count("<h1>") == 1
    assert '<html lang="en">' in html


def test_the_same_run_gives_the_same_bytes(html: str, page_path: Path) -> None:
    before = {path: path.read_bytes() for path in (page_path.parent / "figures").iterdir()}
    write_report([page_path.parent])
    assert page_path.read_text(encoding="utf-8") == html
    assert {path: path.read_bytes() for path in before} == before


def test_names_are_escaped(make_run) -> None:
    name = "<script>alert('$x$ & \"y\"')</script>" + "long" * 40
    reader = Reader(write_report([make_run(name, null_losses=True, recipes=["<i>"])]).read_text(encoding="utf-8"))
    assert "script" not in reader.tags
    assert "i" not in reader.tags
    assert name in reader.text


def test_several_runs_are_overlaid_and_distinguishable(
    make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run("first"), make_run("second", seed=1, resumed=True), make_run("third", running=True)]
    monkeypatch.chdir(tmp_path)
    path = write_report(runs)
    assert path.resolve() == tmp_path / "report.html"
    assert len(list((tmp_path / "figures").iterdir())) == len(FIGURES)
    html = path.read_text(encoding="utf-8")
    reader = Reader(html)
    for number, name in enumerate(("first", "second", "third"), start=1):
        assert f"{number} · {name}" in reader.text
        assert f"run-{number}" in reader.ids
    loss = html[html.index("Line chart of loss") : html.index("<figcaption>")]
    for index in range(3):
        assert f"stroke: var(--series-{index}," in loss
    assert len(html.encode()) < 1_500_000


def test_a_long_run_is_thinned_to_a_small_page(make_run, tmp_path: Path) -> None:
    output = tmp_path / "pages" / "long.html"
    write_report([make_run("long", budget=86_400.0, step_seconds=3.0)], output)
    assert output.stat().st_size < 500_000
    assert (output.parent / "figures" / "ledger.png").is_file()


def test_a_run_without_a_single_step_has_a_page(make_run) -> None:
    path = make_run(running=True)
    for name in ("trace.jsonl", "metrics.jsonl", "clock.json"):
        (path / name).unlink()
    text = Reader(write_report([path]).read_text(encoding="utf-8")).text
    assert "This run has not finished" in text
    assert "not measured" in text


def test_loading_the_export_is_shown_with_its_own_code_only_if_it_has_any(make_run, tmp_path: Path) -> None:
    runs = [make_run(), make_run(), make_run()]
    for run, config in zip(runs, ('{"auto_map": {}}', "{}"), strict=False):
        (run / "export").mkdir()
        (run / "export" / "config.json").write_text(config)
    text = Reader(write_report(runs, tmp_path / "all.html").read_text(encoding="utf-8")).text
    own, native, none = re.split(r"\d · cram-cpu", text)[-3:]
    assert "from_pretrained(folder, trust_remote_code=True)" in own
    assert "AutoModelForMaskedLM.from_pretrained(folder)" in native
    assert f"cram export {runs[2].name}" in none
    assert str(runs[0].parent) not in text
    assert "from_pretrained" not in none


def test_bad_requests_are_refused_in_one_line(make_run, tmp_path: Path) -> None:
    with pytest.raises(CramError, match="no run folder given"):
        write_report([])
    with pytest.raises(CramError, match="is a folder"):
        write_report([make_run()], tmp_path)
    with pytest.raises(CramError, match="not a run folder"):
        write_report([tmp_path / "missing"])


def test_scores_after_fine_tuning_are_on_the_page(make_run) -> None:
    run, protocol = make_run(), ProtocolConfig(tasks=["rte", "mrpc"], seeds=2)
    results = [
        Result(
            "m",
            "h",
            "s",
            "glue",
            "rte",
            seed,
            {"validation": {"accuracy": value}},
            {},
            part,
            False,
            1,
            1.0,
            1.0,
            1.0,
            "cpu",
            "fp32",
        )
        for seed, value, part in ((1, 51.25, []), (2, 54.75, ["train"]))
    ]
    assert "After fine-tuning" not in write_report([run]).read_text(encoding="utf-8")
    add_to_run(run, protocol.name, model_row(protocol, "m", "h", results, 128))
    html = (run / "report.html").read_text(encoding="utf-8")
    for text in ("After fine-tuning", "RTE acc*", "53.0", "51.2 to 54.8", "7 tasks missing", "not scored: MRPC"):
        assert text in html
    (run / "evaluations.json").write_text("{")
    with pytest.raises(CramError, match="evaluations.json: damaged .not valid JSON"):
        write_report([run])


def test_scores_without_fine_tuning_are_on_the_page(make_run) -> None:
    run = make_run()
    accuracies = {"p": {"accuracy": 61.25, "pairs": 1000, "ties": 2, "groups": {"field": "syntax"}}}
    text = {"bits_per_character": 1.23456, "low": 1.2, "high": 1.3, "nats_per_piece": 4.5, "unknown_share": 0.0123}
    text |= {"characters": 50_000, "words": 9_000, "pieces": 12_000, "windows": 800, "cut_windows": 3, "notes": ["cut"]}
    for protocol, scored in ((MinimalPairsConfig(), accuracies), (MaskedWordsConfig(), {"t": text})):
        suite = SUITES[protocol.kind]
        row = {"kind": protocol.kind, "data": "held-out <text>", **suite.summarize(protocol, scored)}
        add_to_run(run, protocol.name, {**row, "notes": suite.notes(row)})
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "After fine-tuning" not in html
    for shown in ("Without fine-tuning", "61.2", "field: syntax", "1.2346", "1.2000 to 1.3000", "1.23 %", "9,000"):
        assert shown in html
    assert "2 of 1000 pairs are ties" in html and "3 of 800 windows were too long" in html
    assert "held-out &lt;text&gt;" in html
    Reader(html)


def test_a_followed_report_reloads_until_the_run_ends(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(running=True)
    pages = []

    def sleep(seconds: float) -> None:
        pages.append((run / "report.html").read_text())
        if len(pages) == 2:
            record = json.loads((run / "record.json").read_text())
            (run / "record.json").write_text(json.dumps(record | {"status": "finished"}))

    monkeypatch.setattr(report.time, "sleep", sleep)
    assert follow_report([run]) == run / "report.html"
    reload = '<meta http-equiv="refresh" content="60">'
    assert len(pages) == 2 and all(reload in page for page in pages)
    assert reload not in (run / "report.html").read_text()
