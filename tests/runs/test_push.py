"""`cram push` with the hub's own client, against a stand-in of the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cram_composer.cli import main
from tests.hub import Hub, running_hub

FILES = {"config.json": b"{}", "README.md": b"---\nlanguage: en\n---\ncard", "model.safetensors": b"weights"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as served:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield served


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "mine"
    (run / "export").mkdir(parents=True)
    (run / "record.json").write_text(json.dumps({"format_version": 2, "status": "finished", "config": {}}))
    for name, content in FILES.items():
        (run / "export" / name).write_bytes(content)
    (run / "report.html").write_bytes(b"<html>")
    return run


def test_export_card_and_report_arrive_in_one_commit(hub: Hub, run_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["push", str(run_folder), "me/model", "--private"]) == 0
    assert capsys.readouterr().out.strip() == f"{hub.endpoint}/me/model"
    model = hub.models["me/model"]
    assert model.private and model.branches["main"] == FILES | {"report.html": b"<html>"}
    assert model.commits == ["Upload mine with cram-composer"]
    assert list(hub.large.values()) == [b"weights"], "weights belong in the store of large files"


def test_a_second_push_replaces_weights_and_code_and_keeps_other_files(hub: Hub, run_folder: Path):
    assert main(["push", str(run_folder), "model"]) == 0
    model = hub.models["me/model"]
    assert not model.private
    model.branches["main"] |= {"modeling_crambert.py": b"", "notes.txt": b"mine", "onnx/model.py": b""}
    (run_folder / "export" / "model.safetensors").write_bytes(b"other weights")
    (run_folder / "report.html").unlink()
    assert main(["push", str(run_folder), "me/model"]) == 0
    files = model.branches["main"]
    assert files["model.safetensors"] == b"other weights"
    assert sorted(files) == sorted([*FILES, "report.html", "notes.txt", "onnx/model.py"])


def test_a_revision_is_a_branch(hub: Hub, run_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["push", str(run_folder), "me/model", "--revision", "longer"]) == 0
    assert capsys.readouterr().out.strip() == f"{hub.endpoint}/me/model/tree/longer"
    branches = hub.models["me/model"].branches
    assert branches["main"] == {} and len(branches["longer"]) == 4
    assert main(["push", str(run_folder), "me/model", "--revision", "longer"]) == 0


@pytest.mark.parametrize(
    ("case", "repo", "message"),
    [
        ("no token", "me/model", "me/model: no token of the hub; run 'hf auth login' or set HF_TOKEN"),
        ("wrong token", "me/model", "me/model: the hub rejects the token; .* (HTTP 401)"),
        ("", "you/model", "you/model: the token may not write there; .* (HTTP 403)"),
        ("", "a/b/c", "'a/b/c' is not a name of a repository: .*; give NAMESPACE/NAME"),
        ("public", "me/public", "me/public: exists and is public; make it private in its settings, or omit --private"),
        ("no export", "me/model", "mine: the run has no export yet; run: cram export "),
        ("no run", "me/model", "mine: not a run folder, because it has no record.json"),
        ("no hub", "me/model", "me/model: cannot reach http://127.0.0.1:9: .*; check the network and HF_ENDPOINT"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(
    case: str,
    repo: str,
    message: str,
    hub: Hub,
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    if case == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif case == "wrong token":
        monkeypatch.setenv("HF_TOKEN", "hf_other")
    elif case == "public":
        assert main(["push", str(run_folder), repo]) == 0
        capsys.readouterr()
    elif case == "no export":
        (run_folder / "export" / "config.json").unlink()
    elif case == "no run":
        (run_folder / "record.json").unlink()
    elif case == "no hub":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    before = {name: model.branches["main"] for name, model in hub.models.items()}
    assert main(["push", str(run_folder), repo, "--private"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    pattern = ".*".join(map(re.escape, message.split(".*")))
    assert re.search(pattern, error), error
    assert {name: model.branches["main"] for name, model in hub.models.items()} == before


def test_results_that_the_card_lacks_are_mentioned(hub: Hub, run_folder: Path, capsys: pytest.CaptureFixture[str]):
    (run_folder / "evaluations.json").write_text("{}")
    card = run_folder / "export" / "README.md"
    os.utime(card, (1, 1))
    assert main(["push", str(run_folder), "me/model"]) == 0
    assert f"to add them: cram export {run_folder}" in capsys.readouterr().err
    os.utime(card)
    assert main(["push", str(run_folder), "me/model"]) == 0
    assert "to add them" not in capsys.readouterr().err
