"""The demo's page and answers over HTTP, and its command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cram_composer.cli import main
from cram_composer.evaluation.demo import load_demo_model, open_server
from cram_composer.models.export import export_model, exported_form
from tests.models.tiny_models import VOCAB_SIZE, save_tokenizer, tiny_model


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    model = exported_form(tiny_model(vocab_size=VOCAB_SIZE, positions="rotary", first_norm=False))
    export_model(model, save_tokenizer(folder / "tokenizer"), folder / "run" / "export", "card")
    (folder / "run" / "record.json").write_text("{}")
    (folder / "run" / "report.html").write_text("<h1>the report</h1>")
    return folder / "run"


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Iterator[str]:
    models = [load_demo_model(str(run_folder)), load_demo_model(str(run_folder / "export"))]
    with open_server(models, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(address: str, body: object | None = None, **headers: str) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json", **headers}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, given)) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_page_shows_both_models_and_links_the_report(page: str):
    status, text = ask(f"{page}/")
    assert status == 200
    assert text.count('class="fills"') == 2
    assert "ModernBertForMaskedLM" in text and text.count('href="/report/0"') == 1
    assert ask(f"{page}/report/0") == (200, "<h1>the report</h1>")
    for missing in ("report/1", "record.json", "../record.json"):
        assert ask(f"{page}/{missing}")[0] == 404


def test_every_mask_gets_guesses_of_every_model(page: str):
    status, text = ask(f"{page}/fill", {"sentence": "the [MASK] flows into the [MASK]."})
    assert status == 200
    first, second = json.loads(text)["models"]
    assert first == second, "the run and its export are one model"
    assert [len(guesses) for guesses in first["masks"]] == [5, 5]
    for guesses in first["masks"]:
        shares = [share for _, share in guesses]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1


@pytest.mark.parametrize("body", [{"sentence": "no mask"}, {"sentence": 3}, {}, [], {"sentence": "[MASK]" * 1000}])
def test_another_request_gets_the_reason(page: str, body: object):
    status, text = ask(f"{page}/fill", body)
    assert status == 400
    assert json.loads(text)["problem"].startswith("give a sentence")


def test_a_mask_beyond_the_models_length_is_a_problem_of_that_model(page: str):
    status, text = ask(f"{page}/fill", {"sentence": "the [MASK] " + "river " * 30 + "[MASK]"})
    assert status == 200
    assert "too long for this model; it read 1 of its [MASK]" in json.loads(text)["models"][0]["problem"]


def test_other_sites_are_refused(page: str):
    sentence = {"sentence": "the [MASK]"}
    assert ask(f"{page}/fill", sentence, Host="evil.example:80")[0] == 403
    assert ask(f"{page}/", None, Host="evil.example")[0] == 403
    assert ask(f"{page}/fill", sentence, **{"Content-Type": "text/plain"})[0] == 403


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/run"], "no/such/run: no such folder"),
        (["RUN", "--port", "99999"], "--port 99999: cannot be opened"),
        (["RUN", "--port", "TAKEN"], "choose another, or 0 for a free one"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: list[str], message: str, run_folder: Path, page: str, capsys: pytest.CaptureFixture[str]
):
    given = {"RUN": str(run_folder), "TAKEN": page.rpartition(":")[2]}
    assert main(["demo", *(given.get(word, word) for word in arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.count("\n") == 0


def test_ctrl_c_ends_the_command(run_folder: Path):
    command = [sys.executable, "-m", "cram_composer.cli", "demo", str(run_folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        assert ask(f"{address}/fill", {"sentence": "the [MASK]"})[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
