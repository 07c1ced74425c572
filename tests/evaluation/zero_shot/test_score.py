"""`cram eval` with zero-shot protocols: tables, files, resuming, the run's page, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cram_composer.cli import main
from cram_composer.config import compose
from cram_composer.config.paths import protocol_file
from cram_composer.config.protocols import compose_protocol, protocol_kind
from cram_composer.config.schema.evaluation import PROTOCOLS, ProtocolConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.results import read_result_lines
from cram_composer.evaluation.zero_shot.score import SUITES, PartResult
from tests.evaluation.tiny_folders import TEXT, byte_level, masked_lm, save, wordpiece, wrapped


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for number, field in enumerate(("syntax", "syntax", "morphology")):
        rows = [
            {"sentence_good": f"{one} king", "sentence_bad": f"king {one}", "UID": f"p{number}", "field": field}
            for one in TEXT[0].split()[: 4 + number]
        ]
        (folder / f"p{number}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text("\n".join(TEXT * 4))
    return path


def eval_(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(["eval", *map(str, arguments), "--device", "cpu"])
    return status, *capsys.readouterr()


def test_minimal_pairs_of_two_models_and_nothing_to_do_the_second_time(model, pairs, tmp_path, capsys):
    arguments = [model, f"untrained:{model}", "--suite", "minimal-pairs", "--data", pairs, "--output", tmp_path]
    status, table, progress = eval_(*arguments, capsys=capsys)
    assert status == 0, progress
    lines = read_result_lines(tmp_path / "zero-shot.jsonl", PartResult)
    assert [line.part for line in lines] == ["p0", "p1", "p2"] * 2
    rows = json.loads((tmp_path / "minimal-pairs.json").read_text())["rows"]
    for row in rows:
        of_parts = {line.part: line.found["accuracy"] for line in lines if line.model_hash == row["model_hash"]}
        assert {name: found["accuracy"] for name, found in row["paradigms"].items()} == of_parts
        assert row["overall"] == pytest.approx(sum(of_parts.values()) / 3)
        assert row["groups"]["field"]["syntax"] == pytest.approx((of_parts["p0"] + of_parts["p1"]) / 2)
        squares = {}
        for name, found in row["paradigms"].items():
            share, count = (found["accuracy"] / 100 * found["pairs"] + 2) / (found["pairs"] + 4), found["pairs"] + 4
            squares[name] = 196**2 * share * (1 - share) / count
        assert row["margins"]["overall"] == pytest.approx(sum(squares.values()) ** 0.5 / 3)
        assert row["margins"]["groups"]["field"]["syntax"] == pytest.approx((squares["p0"] + squares["p1"]) ** 0.5 / 2)
        assert f"{row['overall']:.1f} +- " in next(line for line in table.splitlines() if line.startswith(row["model"]))
    assert all(word in table for word in ("overall", "syntax", "morphology", "mean over 3 paradigms; chance is 50"))
    before = (tmp_path / "zero-shot.jsonl").read_bytes()
    status, again, progress = eval_(*arguments, "--set", "batch_tokens=64", capsys=capsys)
    assert (status, again, progress) == (0, table, "")
    (tmp_path / "zero-shot.jsonl").write_bytes(before[: len(before) // 2])  # killed on the way
    status, again, progress = eval_(*arguments, capsys=capsys)
    assert (status, again) == (0, table) and 0 < progress.count("eval: ") < 6
    status, other, progress = eval_(*arguments, "--set", "score=within-word-l2r", capsys=capsys)
    assert (status, progress.count("eval: ")) == (0, 6) and "by within-word-l2r" in other


def test_masked_words_of_two_tokenizers(model, text, tmp_path, capsys):
    other = save(tmp_path / "bytes", tokenizer=byte_level())
    arguments = [model, other, "--suite", "masked-words", "--data", text, "--output", tmp_path]
    status, table, progress = eval_(*arguments, "--set", "window_characters=60", capsys=capsys)
    assert status == 0, progress
    one, two = json.loads((tmp_path / "masked-words.json").read_text())["rows"]
    for key in ("words", "characters", "windows"):
        assert one["text"][key] == two["text"][key] > 0
    assert one["text"]["pieces"] != two["text"]["pieces"]
    for said in (
        "bits/character",
        "95 % interval",
        "nats/piece",
        "unknown",
        f"{one['text']['bits_per_character']:.4f}",
    ):
        assert said in table
    assert f"{model}: its tokenizer lower-cases and drops accents" in table
    assert f"{other}: its tokenizer" not in table


def test_failing_model_does_not_affect_the_others(model, pairs, tmp_path, capsys):
    headless = tmp_path / "headless"
    save(headless)
    masked_lm("bert", 80).bert.save_pretrained(headless)
    arguments = [headless, model, "--suite", "minimal-pairs", "--data", pairs, "--output", tmp_path / "out"]
    status, table, error = eval_(*arguments, capsys=capsys)
    assert status == 1
    assert "not a masked LM" in error and f"{headless}: 3 of 3 parts are not scored" in table
    assert {line.model for line in read_result_lines(tmp_path / "out" / "zero-shot.jsonl", PartResult)} == {str(model)}


def without_mask(folder: Path) -> None:
    wrapped(wordpiece(), mask_token=None).save_pretrained(folder)


def without_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("*token*"), *folder.glob("vocab*")]:
        path.unlink()


@pytest.mark.parametrize(
    ("break_", "message"),
    [(without_mask, "its tokenizer has no [MASK] token"), (without_tokenizer, "its tokenizer cannot be loaded")],
)
def test_unsuitable_tokenizers_are_refused(break_, message, pairs, tmp_path, capsys):
    folder = save(tmp_path / "model")
    break_(folder)
    capsys.readouterr()  # progress bars of transformers
    arguments = [folder, "--suite", "minimal-pairs", "--data", pairs, "--output", tmp_path / "out"]
    status, _, error = eval_(*arguments, capsys=capsys)
    assert status == 2
    assert message in error and error.startswith(f"error: {folder}: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "3"], "--seeds: has no effect with a protocol of kind"),
        (["--tasks", "cola"], "--tasks: has no effect with a protocol of kind"),
        (["--jobs", "2"], "--jobs: has no effect with a protocol of kind"),
        (["--slurm", "timeout_min=10"], "--slurm: has no effect with a protocol of kind"),
        (["--set", "epochs=2"], "epochs: unknown key for '"),
        (["--set", "batch_tokens=0"], "batch_tokens: must be > 0, got 0"),
        (["--set", "precision=fp16"], "fp16 needs a GPU"),
        (["--set", "kind=fine-tuning"], ", got 'fine-tuning' (set on the command line)"),
    ],
)
@pytest.mark.parametrize("suite", list(SUITES))
def test_mistakes_are_one_line(suite, arguments, message, model, pairs, tmp_path, capsys):
    given = [model, "--suite", suite, "--data", pairs, "--output", tmp_path / "out"]
    status, _, error = eval_(*given, *arguments, capsys=capsys)
    assert status == 2
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_data_have_no_default(model, tmp_path, capsys):
    status, _, error = eval_(model, "--suite", "masked-words", "--output", tmp_path / "out", capsys=capsys)
    assert status == 2 and error.startswith("error: --data: required")


def test_the_kind_in_the_file_chooses_the_schema(tmp_path):
    assert protocol_kind("glue") == "fine-tuning"
    assert isinstance(compose_protocol("glue", []).config, ProtocolConfig)
    (tmp_path / "mine.yaml").write_text("kind: masked-words\nname: mine\n")
    composed = compose_protocol(str(tmp_path / "mine.yaml"), ["seed=4"])
    assert (composed.config.kind, composed.config.name, composed.config.seed) == ("masked-words", "mine", 4)
    (tmp_path / "mine.yaml").write_text("kind: masked-word\n")
    with pytest.raises(CramError, match=r"kind: .* got 'masked-word'; did you mean 'masked-words'.*mine\.yaml"):
        protocol_kind(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("kind", list(SUITES))
def test_the_protocols_are_written_out_whole(kind):
    composed = compose(PROTOCOLS[kind], protocol_file(kind), [])
    assert composed.config == PROTOCOLS[kind]()
    assert "default" not in composed.provenance.values()


def test_the_rows_of_runs_are_kept_for_their_pages(pairs, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "record.json").write_text("{}")
    save(run / "export", "crambert")
    kept = []
    monkeypatch.setattr("cram_composer.evaluation.fine_tuning.suite.add_to_run", lambda *given: kept.append(given))
    arguments = [f"untrained:{run}", run, "--suite", "minimal-pairs", "--data", pairs, "--output", tmp_path / "out"]
    status, _, error = eval_(*arguments, capsys=capsys)
    assert status == 0, error
    rows = json.loads((tmp_path / "out" / "minimal-pairs.json").read_text())["rows"]
    assert kept == [(run, "minimal-pairs", rows[1])]
