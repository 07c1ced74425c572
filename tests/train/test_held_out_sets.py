"""Further held-out sets, each with its own loss in the log, the record and the output."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from cram_composer.analysis.report.page import headline
from cram_composer.analysis.runs.run import load_run
from cram_composer.config.schema.data_build import TextFiles
from tests.conftest import build_tiny_data, environment, train_command, write_text
from tests.tiny_runs import record

EVALUATED = [
    "logging.progress_bar=true",
    "eval.interval=0.5",
    "eval.rows=16",
    "eval.final_rows=32",
    "eval.batch_size=16",
]


def test_every_held_out_set_has_its_own_loss(tmp_path: Path) -> None:
    write_text(tmp_path / "news.txt", documents=60)
    (tmp_path / "odd.txt").write_text("\n".join(["zz zz zz zz zz zz zz"] * 200))
    files = {name: TextFiles(paths=[str(tmp_path / f"{name}.txt")], document="line") for name in ("news", "odd")}
    data = build_tiny_data(tmp_path, held_out=files)
    folder = tmp_path / "runs" / "run"
    command = train_command(data, tmp_path / "runs", ["budget={wall: null, steps: 10}", "run_name=run", *EVALUATED])
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = record(folder)["metrics"]
    losses = {"": metrics["validation_loss"], **{name: of["loss"] for name, of in metrics["held_out"].items()}}
    assert list(losses) == ["", "news", "odd"] and losses["odd"] > losses["news"] + 0.3
    assert metrics["validation_rows"] == 32
    logged: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line)
    assert {"eval/loss", "eval-news/loss", "eval-odd/loss"} <= logged.keys()
    printed = done.stdout + done.stderr
    for name in ("news", "odd"):
        assert f"{name}: held-out loss {losses[name]:.3f} nats" in printed
        assert re.search(rf"step \d+: {name}, held-out loss {logged[f'eval-{name}/loss']:.3f} nats", printed)
    assert [tile.label for tile in headline(load_run(folder))][1:3] == ["Held-out loss of news", "Held-out loss of odd"]
