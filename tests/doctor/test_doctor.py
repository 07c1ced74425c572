"""`cram doctor` on a CPU: everything passes on a sound machine, and each fault is found and named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from cram_composer.cli import main
from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.device import choose_device
from cram_composer.doctor import checks, doctor, link, machine, numerics, precision, resume, training, trial
from cram_composer.doctor.checks import Check, CheckContext
from cram_composer.errors import CramError
from cram_composer.models.attention_kernels import EagerAttention
from cram_composer.planning.run_spec import RunSpec, read_data_facts
from tests.conftest import REPOSITORY, SMALL
from tests.data.data_sets import write_data_set

YAML = REPOSITORY / "yamls" / "cram-cpu.yaml"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_LOAD_SECONDS", 0.2)
    monkeypatch.setattr(machine, "_DISK_BYTES", 8 << 20)
    monkeypatch.setattr(precision, "_SECONDS", 0.05)
    monkeypatch.setattr(precision, "_COPY_BYTES", 8 << 20)


def context(tmp_path: Path, *overrides: str) -> CheckContext:
    settings = [*SMALL, f"data.local={write_data_set(tmp_path / 'data')}", f"runs_dir={tmp_path / 'runs'}", *overrides]
    composed = compose(RunConfig, YAML, settings)
    spec = RunSpec(composed.config, read_data_facts(composed.config.data), 1)
    return CheckContext(YAML, settings, composed, choose_device(composed.config, 1), spec, 1)


def on_gpu(given: CheckContext) -> CheckContext:
    return dataclasses.replace(given, device=dataclasses.replace(given.device, name="gpu", compile="regional"))


def test_a_sound_machine_passes(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write_data_set(tmp_path / "data")
    settings = [f"data.local={data}", f"runs_dir={tmp_path / 'runs'}", "train.threads=1"]
    small = [item for item in SMALL if not item.startswith("train.compile")]
    assert main(["doctor", str(YAML), *small, *settings, "--json"]) == 0
    printed = capsys.readouterr()
    found = {check["name"]: check for check in json.loads(printed.out)["checks"]}
    statuses = {name: check["status"] for name, check in found.items()}
    assert set(statuses.values()) <= {"pass", "warn"}, [check for check in found.values() if check["status"] == "fail"]
    assert not {"eager", "compiled", "attention sdpa", "loss chunked", "optimizer", "resume"} - statuses.keys()
    assert found["compilation"]["values"]["graphs"] > 0 and found["compilation"]["values"]["recompilations"] == 0
    assert found["speed"]["values"]["tokens_per_second"] > 0 and found["eager"]["values"]["difference"] < 1e-4
    assert found["memory"]["values"]["peak_bytes"] > found["memory"]["values"]["planned_bytes"] > 0
    assert found["projection"]["values"]["tokens"] > 0 and not (tmp_path / "runs").exists()
    assert "PASS  speed" in printed.err


def test_a_wrong_kernel_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    right = EagerAttention.attend
    monkeypatch.setattr(EagerAttention, "attend", lambda *arguments: right(*arguments).roll(1, 2))
    found = {check.name: check for check in numerics.check_numerics(context(tmp_path))}
    assert found["attention sdpa"].status == "pass" and found["optimizer"].status == "pass"
    assert found["attention eager"].status == "fail"
    assert found["attention eager"].values["parameter"] in found["attention eager"].line


def test_an_error_is_a_failed_check_and_the_exit_status(quick: None, monkeypatch, tmp_path: Path, capsys):
    def broken(given: CheckContext):
        yield Check("first", "pass", "fine")
        raise RuntimeError("no such thing\nand more")

    monkeypatch.setattr(doctor, "_GROUPS", {"broken": broken, "machine": machine.check_machine})
    assert main(["doctor", str(YAML), *SMALL, f"data.local={write_data_set(tmp_path / 'data')}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "PASS  first           fine" and lines[1].startswith("FAIL  broken")
    assert "no such thing" in lines[1] and "and more" not in lines[1] and "device" in lines[2]
    assert lines[-1].startswith("1 of ") and lines[-1].endswith("checks failed: broken")


def test_a_missing_compiler_is_named(monkeypatch, tmp_path: Path):
    given = context(tmp_path)
    assert machine._compiler(given).status == "pass"
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = machine._compiler(context(tmp_path / "auto", "train.compile=auto"))
    assert found.status == "warn" and "no C++ compiler (g++); install g++" in found.line
    assert machine._compiler(on_gpu(context(tmp_path / "gpu", "train.compile=full"))).status == "fail"


def test_a_small_shared_memory_and_a_slow_disk_are_named(monkeypatch, tmp_path: Path):
    usage = machine.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(free=64 << 20))
    assert machine._shared_memory().status == "fail" and "--shm-size" in machine._shared_memory().line
    monkeypatch.setattr(machine, "_SLOW_DISK", 1e15)
    assert machine._disk(context(tmp_path)).status == "warn"


def test_recompilations_are_counted_and_explained(tmp_path: Path):
    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    torch._dynamo.reset()
    compiled = trial.Recompilations()
    layers = [Doubled(), Doubled()]
    for layer in layers:
        layer.compile(dynamic=False, backend="eager")

    def run(*sizes: int) -> list[str]:
        for size in sizes:
            for layer in layers:
                layer(torch.ones(size))
        return compiled.reasons()

    assert run(2, 2) == [], "two layers share a graph"
    (reason,) = run(3, 2, 3)
    assert "expected 2, actual 3" in reason and "\n" not in reason
    assert len(run(5)) == 2, "one graph more, although two earlier ones do not fit"
    compiled.expect_no_more()
    assert run(2, 3) == [] and len(run(7)) == 1
    counts = {"graphs": 3, "graph_breaks": 0, "recompilations": [reason], "compile_seconds": 1.0}
    check = training._compilation(on_gpu(context(tmp_path)), counts, counts)
    assert check.status == "warn" and check.values["recompilations"] == 1 and reason in check.line
    torch._dynamo.reset()


def test_data_that_are_not_built_are_skipped(tmp_path: Path):
    given = context(tmp_path)
    (tmp_path / "data" / "manifest.json").unlink()
    (found,) = resume.check_resume(given)
    assert found.status == "skip" and "cram data build" in found.line


def test_the_link_between_two_ranks(monkeypatch, tmp_path: Path):
    given = dataclasses.replace(context(tmp_path), processes=2)
    (found,) = link.check_link(given)
    assert found.status == "pass" and found.values["bytes_per_second"] > 0
    monkeypatch.setattr(link, "_SECONDS", 0.1)
    with pytest.raises(CramError, match=r"2 ranks have not ended after 0\.1 s"):
        list(link.check_link(given))


@pytest.mark.parametrize(
    "reported, name",
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 2080 Ti", "RTX 2080 Ti"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA GeForce RTX 2080", None),
        ("NVIDIA RTX 4000 Ada Generation", None),
    ],
)
def test_cards_are_found_by_the_names_of_their_driver(reported: str, name: str | None):
    card = precision.card_of(reported)
    assert (card and card.name) == name


def test_rates_are_compared_with_the_data_sheet():
    assert precision._rated("products", 40e12, 100e12, 1e12, "TFLOP/s").status == "warn"
    assert precision._rated("products", 60e12, 100e12, 1e12, "TFLOP/s").line == "60 TFLOP/s, 60% of the stated 100"


def test_json_counts_the_failures():
    found = checks.checks_as_json([Check("a", "pass", "fine"), Check("b", "fail", "broken")])
    assert found["failed"] == 1 and [check["name"] for check in found["checks"]] == ["a", "b"]


def test_mistakes_are_one_line(capsys):
    assert main(["doctor", "nowhere.yaml"]) == 2
    assert main(["doctor", str(YAML), "optimizer.lr=-1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert not torch.cuda.is_initialized()
