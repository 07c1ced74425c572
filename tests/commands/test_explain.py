"""`cram explain` rejects the same configurations as `cram train` with the same line, and shows differences of runs."""

from __future__ import annotations

import pytest

from cram_composer.cli import main
from tests.conftest import REPOSITORY

CPU, GPU = "yamls/cram-cpu.yaml", "yamls/cram-1gpu.yaml"
OTHERS_KEYS = {  # settings of one optimizer or schedule, rejected for others
    "optimizer.momentum=0.9": ("adamw", "adan", "lion", "radam", "shampoo", "sophia"),
    "optimizer.rho=0.1": ("adamw", "muon", "soap"),
    "optimizer.ns_steps=3": ("adamw", "lion", "lamb"),
    "optimizer.scale_parameter=true": ("adamw", "stableadamw"),
    "optimizer.eps=1e-8": ("adafactor", "lion"),
    "schedule.peak_at=0.5": ("cosine", "wsd", "linear", "constant"),
    "schedule.cycles=3": ("cosine", "triangle", "wsd"),
    "schedule.power=2.0": ("linear", "triangle"),
    "schedule.warmup=0.1": ("triangle", "one-cycle", "multi-cycle", "inverse-cosine"),
    "schedule.decay=0.1": ("cosine", "linear", "triangle"),
}
WRONG_VALUES = [
    "budgt=3", "train.compil=off", "train.batch_size=x", "train.batch_size=0", "train.batch_size=1.5",
    "train.batch_size=true", "train.batch_size=100", "train.compile=fll", "train.precision=fp8", "train=3",
    "train.nonfinite=stop", "train.kill={}", "model.norm_place=pre", "model.ffn=gelu_glu", "recipes=[crammd-bert]",
    "recipes=[crammed-bert,ema,ema]", "recipes=3", "recipes=[crammed-bert,muon,lion]", "recipes=[ema,crammed-bert]",
    "recipes=[crammed-bert,ema,swa]", "budget=3x", "budget=60", "budget=null", "budget={wall: 1h, replay: x, steps: 3}",
    "nonsense", "optimizer.lr=-1", "optimizer.lr=nan", "optimizer.lr=[1]", "optimizer.betas=[0.9]",
    "optimizer.betas=[0.9,1.0]", "optimizer.betas=[0.9,0.9,0.9]", "optimizer.betas=0.9", "optimizer.name=adam",
    "optimizer.name=5", "optimizer.groups.embedding_lr=-1", "optimizer.groups.x=1", "optimizer.lr_scale=0",
    "optimizer.mup_base_width=256", "schedule.name=cosin", "schedule={name: wsd, warmup: 0.6, decay: 0.6}",
    "schedule.start=2", "model={architecture: hf}", "model={architecture: hf, hf_name: brt}",
    "model={architecture: hf, hf_name: bert, document_masking: true}",
    "model={architecture: hf, hf_name: bert, hf_overrides: {hiden_size: 3}}", "model.hidden_size=101",
    "model.hidden_size=129", "model.intermediate_size=33", "model.repeats=2", "model.rope_theta=0",
    "model={positions: none, rope_theta: 5e4}", "model.global_every=2", "model.value_embeddings=9",
    "model.short_convolution=2", "model={stack: funnel}", "model.num_attention_heads=3", "data={build: null}",
    "data.deadline=soon", "data.cache_limit=50", "data.mixture={a: {repeat: 2, choose: 3}}",
    "data.mixture={a: {share: 1}}", "data.curriculum=[{at: 1.5, proportions: {a: 1}}]",
    "data.curriculum=[{proportions: {a: 0}}]", "data.num_workers=-1", "data.remot=s3://x/y",
    "objective.mlm_probability=0.95", "objective.causal_fraction=0.5", "objective.mask_schedule=step",
    "objective={unit: span, positions: bernoulli}", "algorithms.ema={half_life: 2.0}", "algorithms={ema: {}, swa: {}}",
    "algorithms.emma={}", "algorithms.seq_length_warmup={min_seq_length: 0}",
    "algorithms.stochastic_depth={drop_rate: 1.0}", "eval.interval=1.5", "eval.rows=8", "checkpoint.branch_at=[1.5]",
    "checkpoint.keep=0", "checkpoint.interval=1y", "scaleout=fsdp3", "scaleout.fsdp2.mixed_precision=HALF",
    "scaleout={strategy: deepspeed, deepspeed: {optimizer: {}}}", "logging.tensorbord=false", "export.sentences=x",
    "seed=x", "seed=-1", "seed=4294967296", "data.remote=ftp://a/b", "data.remote=s3:/a", "runs_remote=s3://",
    "optimizer..lr=3", "optimizer=muon", "device=tpu", "data.local=${oc.env:NO_SUCH_VARIABLE}",
]  # fmt: skip
CASES = [(CPU, [value]) for value in WRONG_VALUES]
CASES += [
    (GPU, [f"{setting.partition('.')[0]}.name={name}", setting])
    for setting, names in OTHERS_KEYS.items()
    for name in names
]


def refusal(capsys: pytest.CaptureFixture[str], command: str, path: str, overrides: list[str]) -> str:
    assert main([command, path, *overrides]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_there_are_a_hundred_wrong_configurations():
    assert len(CASES) >= 100


@pytest.mark.parametrize(("path", "overrides"), CASES, ids=[" ".join(overrides) for _, overrides in CASES])
def test_explain_and_train_refuse_the_same_with_the_same_line(path, overrides, capsys, monkeypatch, tmp_path):
    full = str(REPOSITORY / path)
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys, "explain", full, overrides) == refusal(capsys, "train", full, overrides)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_an_old_key_gets_the_new_one(capsys):
    for old, new in (("train.nonfinite=stop", "train.on_nonfinite"), ("model.norm_place=pre", "model.norm_position")):
        assert f"did you mean '{new}'?" in refusal(capsys, "explain", CPU, [old])


def test_a_removed_key_gets_what_takes_its_place(capsys):
    assert "removed; the warmup ends at" in refusal(
        capsys, "explain", CPU, ["algorithms.seq_length_warmup.max_seq_length=64"]
    )


def test_a_suggestion_is_like_what_was_written(capsys):
    assert "did you mean 'FULL'?" in refusal(capsys, "explain", CPU, ["scaleout.fsdp2.mixed_precision=full"])
    assert "did you mean" not in refusal(capsys, "explain", CPU, ["model.norm=foo"])


def test_the_layer_named_is_the_one_that_made_the_mistake(capsys):
    for override in ("model.num_attention_heads=3", "model.hidden_size=130"):
        key = override.partition("=")[0]
        assert f"({key} set on the command line)" in refusal(capsys, "explain", CPU, [override])
    said = refusal(capsys, "explain", CPU, ["train.batch_size=7"])
    assert said.endswith("change train.device_train_microbatch_size (set on the command line)\n")


def test_a_short_form_sets_only_what_it_says(capsys):
    assert main(["explain", CPU]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("budget.")}
    assert lines["budget.wall"].endswith(f"# {CPU}") and lines["budget.replay"].endswith("# default")


def test_every_value_is_explained(capsys):
    assert main(["explain", CPU, "optimizer.name=muon"]) == 0
    out = capsys.readouterr().out
    assert "optimizer.lr " in out and "# yamls/cram-cpu.yaml, over 0.001 of recipe crammed-bert" in out
    assert "optimizer.ns_steps" in out and "schedule.power" not in out


def test_devices_are_those_it_is_checked_for(capsys):
    assert "train.batch_size" in refusal(capsys, "explain", CPU, ["train.batch_size=48", "-n", "2"])
    assert main(["explain", CPU, "train.batch_size=48"]) == 0


def test_differences_from_another_yaml_and_from_a_run(capsys):
    assert main(["explain", CPU, "seed=3", "optimizer.name=lion", "--diff", CPU]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "seed", "optimizer.name", "optimizer.lr_scale", "optimizer.weight_decay", "optimizer.betas", "optimizer.eps",
    ]  # fmt: skip
    assert lines[0].split() == ["seed", "3", f"{CPU}:", "17"]
    assert lines[-1].split()[1] == "absent"
    assert main(["explain", CPU, "--diff", CPU]) == 0
    assert capsys.readouterr().out == f"no differences from {CPU}\n"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "yamls").glob("cram-*gpu*.yaml")), ids=lambda path: path.stem)
def test_the_runs_for_gpus_export_a_class_of_transformers_without_an_extra_layer(path, capsys):
    assert main(["explain", str(path)]) == 0
    said = capsys.readouterr().out
    assert "export ModernBertForMaskedLM, without code" in said
    assert "model.first_norm " in said and "no-first-norm" in said, "else the export has a layer in front"
