"""Runs of replaced-token detection: progress, export, exact resuming, comparison, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForMaskedLM

from cram_composer.analysis.compare.comparability import data_refusals
from cram_composer.analysis.runs.run import load_run
from cram_composer.config import compose_run
from cram_composer.errors import ConfigError, CramError
from cram_composer.runs.extend import create_extension
from cram_composer.train.export import export_run
from tests.conftest import Train
from tests.tiny_runs import TinyRuns, losses, record, same, saved

BARE = "objective.corrective_masks=null"
CORRECTIVE = "objective.corrective_masks=0.2"
RTD = ["recipes=[crammed-bert,rope,rtd,ema]", "objective.generator_width=0.5", "eval.interval=0.4", BARE]
MIXED = [*RTD, CORRECTIVE, "objective.embeddings=gdes"]


@pytest.mark.parametrize("settings", [RTD, MIXED], ids=["shared", "gdes, corrective"])
def test_a_killed_run_resumes_exactly(settings: list[str], tiny_run: TinyRuns) -> None:
    name = f"rtd-{len(settings)}"
    whole = tiny_run(name, *settings)
    killed = tiny_run.resume(whole, 6, *settings)
    assert losses(killed) == losses(whole)
    assert same(saved(killed), saved(whole))
    assert record(killed)["metrics"] == record(whole)["metrics"]
    assert set(record(whole)["metrics"]["detection"]) == {"detector_loss", "detected", "false_alarms"}


def test_an_extension_starts_from_all_weights(tiny_run: TinyRuns) -> None:
    settings = [*MIXED, "algorithms.ema=null", "export.enabled=false"]
    first = tiny_run("rtd-first", *settings)
    made = create_extension(first, "{steps: 10}")
    tiny_run.continue_run(made.path, made.composed)
    assert record(made.path)["status"] == "finished" and losses(made.path)[0] < losses(first)[0]
    still = tiny_run("rtd-still", *settings, f"init_from={first}", "optimizer.lr=0.0", "optimizer.weight_decay=0.0")
    assert same(saved(still)["model"], saved(first)["model"])


@pytest.mark.parametrize(
    ("source", "changes", "says"),
    [
        (["recipes=[crammed-bert,rope]"], [], "has no generator; replaced-token detection starts from random weights"),
        (MIXED, ["objective.embeddings=shared"], "was trained with objective.embeddings=gdes, not shared"),
        (MIXED, ["objective.generator_width=0.25"], "weights differ in shape"),
    ],
    ids=["masked-lm", "embeddings", "generator"],
)
def test_other_weights_are_refused(source: list[str], changes: list[str], says: str, tiny_run: TinyRuns) -> None:
    first = tiny_run(f"from-{len(source)}", *source)
    with pytest.raises(CramError, match=says) as refused:
        tiny_run(f"refused-{len(says)}", *MIXED, f"init_from={first}", *changes)
    assert "\n" not in str(refused.value)


def test_a_run_reports_both_networks_and_exports_the_encoder(train: Train, tmp_path: Path) -> None:
    shown = ["logging.progress_bar=true", "export={enabled: true, sentences: ['the river flows into the [MASK]']}"]
    done = train("run_name=r", "budget={wall: null, steps: 10}", *RTD, "model.embedding_norm=true", *shown)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "r"
    printed = done.stdout + done.stderr
    assert re.search(r"generator's held-out loss \d\.\d{3} nats at 15 % \[MASK\]", printed)
    assert re.search(r"detector: loss 0\.\d{4} nats, takes [\d.]+ % of replaced and [\d.]+ % of other", printed)
    assert "river flows into" in printed
    logged: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line)
    assert {"eval/loss", "eval/detector_loss", "eval/detected", "eval/false_alarms"} <= logged.keys()
    encoder = AutoModel.from_pretrained(run / "export")
    assert type(encoder).__name__ == "ModernBertModel"
    AutoModelForMaskedLM.from_pretrained(run / "export" / "generator")
    card = (run / "export" / "README.md").read_text()
    assert "replaced-token detection, not by masked-language modelling" in card
    assert "pipeline_tag: feature-extraction" in card and "/generator" in card and "share of replaced tokens" in card
    before = encoder.state_dict()
    export_run(run, tmp_path / "again")  # from the checkpoint
    assert same(dict(AutoModel.from_pretrained(tmp_path / "again").state_dict()), dict(before))


def test_losses_of_different_objectives_are_not_compared(tiny_run: TinyRuns, plain_run: Path) -> None:
    of_detection = load_run(tiny_run("rtd-compared", *RTD))
    refusals = data_refusals([load_run(plain_run), of_detection])
    assert any("objective.name mlm against rtd" in line for line in refusals)
    assert not any("objective.shift" in line for line in refusals)
    old = load_run(plain_run)
    assert old.get("config.objective.name") == "mlm"


def test_a_masked_lm_starts_only_from_an_encoder_that_has_a_head(tiny_run: TinyRuns) -> None:
    bare, corrective = tiny_run("rtd-bare", *RTD), tiny_run("rtd-head", *RTD, CORRECTIVE)
    masked_lm = ["recipes=[crammed-bert,rope]"]
    started = tiny_run("rtd-started", *masked_lm, f"init_from={corrective}")
    assert record(started)["init_from"]["path"] == str(corrective)
    with pytest.raises(CramError, match="has no masked-LM head; give a run with objective.corrective_masks"):
        tiny_run("rtd-refused", *masked_lm, f"init_from={bare}")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["recipes=[crammed-bert,sophia,rtd]"], "'sophia' and 'rtd' exclude each other"),
        (["recipes=[crammed-bert,hybrid-causal,rtd]"], "'hybrid-causal' and 'rtd' exclude each other"),
        (["objective.name=rtd", "model.loss_kernel=chunked"], r"^model\.loss_kernel: .* samples from all its logits"),
        (["objective.name=rtd", "model.mup_base_width=64"], r"^model\.mup_base_width: "),
        (["objective.name=rtd", "optimizer.name=sophia"], r"^optimizer\.name: "),
        (["objective.name=rtd", "optimizer.groups.layer_lr_decay=0.9"], r"^optimizer\.groups\.layer_lr_decay: "),
        (["objective.name=rtd", "algorithms.label_smoothing={}"], r"^algorithms\.label_smoothing: "),
        (["objective.name=rtd", "train.early_stop={loss_above: 7}"], r"^train\.early_stop\.loss_above: "),
        (["objective.name=rtd", "model={architecture: hf, hf_name: bert}"], r"^model\.architecture: "),
        (["objective.name=rtd", "objective.shift=true"], r"^objective\.shift: unknown key for 'rtd'"),
        (["objective.embeddings=gdes"], r"^objective\.embeddings: unknown key for 'mlm'"),
        (["model.embedding_size=64", "model.mup_base_width=64"], r"^model\.mup_base_width: .*embedding_size"),
    ],
)
def test_what_excludes_it_is_one_line(settings: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        compose_run("yamls/cram-cpu.yaml", settings)
    assert "\n" not in str(refused.value)
