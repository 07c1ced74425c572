"""Commands and files in README.md and docs/: each parses, and runs as written or is listed with the reason why not."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from cram_composer.cli import build_parser
from cram_composer.commands.arguments import overrides_from
from cram_composer.commands.eval import requested_protocol
from cram_composer.config import compose, compose_run, paths, recipes
from cram_composer.config.paths import sweep_file
from cram_composer.config.schema.data_build import DataBuildConfig
from cram_composer.config.schema.sweep import SweepConfig
from cram_composer.errors import ConfigError
from cram_composer.reference.json_schema import KINDS
from cram_composer.sweeps.ablation import leave_one_out
from tests.conftest import REPOSITORY
from tests.docs.markdown import PAGES, Command, bash_script, commands, page_name, yaml_blocks
from tests.reference.test_json_schema import accepts

# Those of RESULTS.md belong to measurements of their date.
COMMANDS = [command for page in PAGES if page.name != "RESULTS.md" for command in commands(page)]
PROGRAMS = {"cram", "composer", "make", "python"}

# Run as written, each in seconds.
QUICK = [
    "make help",
    "cram recipes",
    "cram recipes ema",
    "cram explain yamls/cram-cpu.yaml recipes=[+ema] optimizer.lr=3e-3",
    "cram explain yamls/cram-cpu.yaml optimizer.name=muon --diff yamls/cram-2core.yaml",
    "cram explain yamls/cram-cpu.yaml recipes=[crammed-bert,rope,alibi]",
    "cram recipes --markdown > docs/reference/recipes.md",
    "cram schema --markdown > docs/reference/configuration.md",
    "for kind in run recipe data eval sweep; do cram schema $kind > cram_composer/schemas/$kind.json; done",
]
# Run from the first block to the last, in minutes: as written but for these replacements.
WHOLE_PAGES = {
    "docs/tutorial/first-cram.md": {},
    "docs/tutorial/python-code.md": {"budget=10m": "budget=60s", "--seeds 3": "--seeds 1 --set epochs=1"},
    "docs/how-to/object-storage.md": {},
}
SLOW = {  # command: part of its output
    "composer -n 2 train.py yamls/cram-cpu.yaml scaleout=deepspeed budget=60s run_name=zero": "held-out loss",
    "cram plan yamls/cram-1gpu.yaml --devices 8 --budget 3h --flops 120e12 --memory 24gb": "memory per device",
    "cram plan yamls/cram-1gpu.yaml --flops 120e12 --memory 24gb": "memory per device",
}

# Parts of commands that do not run here, by reason.
NOT_RUN = {
    "needs a GPU": ["cram-1gpu.yaml", "cram-8gpu", "cram sweep masking-rate", "cram sweep optimizers.yaml"],
    "needs runs on a GPU": [
        "cram branch runs/trunk",
        "cram extend runs/cram-1gpu",
        "cram status runs/cram-1gpu-extended",
    ],
    "needs a network": [
        "fineweb-edu.yaml",
        "sky-env",
        "google-bert/bert-base-uncased",
        "uv venv",
        "pip install",
        "pip download",
    ],
    "needs a token of the hub": ["cram push"],
    "serves a page until Ctrl-C": ["cram demo"],
    "needs Slurm": ["executor=slurm", "SLURM_"],
    "needs data that is not in the repository": [
        "DATA",
        "FOLDER",
        "--data DIR",
        "--data BLIMP",
        "yamls/cram-babylm.yaml",
        "--data blimp/data",
        "--data held-out.txt",
        "--train ",
        "mine.yaml",
        "cram data inspect ~/data/mine",
    ],
    "needs datatrove's environment": ["datatrove-env", "examples/datatrove/build.yaml", "~/data/cleaned"],
    "needs earlier runs": ["cram scaling-law", "cram reproduce", "cram compare", "cram runs", "runs/base runs/ema"],
    "trains for minutes as the tutorial does": [
        "cram sweep screening.yaml",
        "run_name=short eval.interval",
        "cram train yamls/cram-cpu.yaml",
        "cram ablate yamls/cram-cpu.yaml",
        "cram throughput",
        "make cram",
    ],
    "has placeholders": ["cram recipes NAME", "cram explain yamls/cram-cpu.yaml recipes=[+NAME]"],
    "runs tests or benchmarks for minutes": [
        "make test",
        ".ci/run",
        "python -m pytest",
        "benchmarks.data_build_memory",
        "benchmarks.gpu_lowering",
        "benchmarks.recipe_effects",
        "tests.scaleout.table",
        "tests.uses.table",
    ],
    "installs": ["sudo apt", "python3 -m venv"],
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a checkout, with links to the repository, folders to write to and the pages' files."""
    top = tmp_path / "checkout"
    (top / "docs" / "reference").mkdir(parents=True)
    (top / "cram_composer" / "schemas").mkdir(parents=True)
    folders = ("scripts", "yamls", "benchmarks")
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "train.py", *folders):
        (top / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "recipes", top / "recipes")
    (top / "mine.yaml").write_text(_block("docs/tutorial/own-text.md", "name: mine"))
    for name in ("optimizers", "screening"):
        (top / f"{name}.yaml").write_text(_block("docs/how-to/sweeps.md", f"name: {name}\n"))
    (top / "recipes" / "slow-start.yaml").write_text(_block("docs/tutorial/is-it-better.md", "card:"))
    (top / "recipes" / "NAME.yaml").write_text(_block("docs/how-to/add-a-recipe.md", "card:"))
    (top / "examples").symlink_to(REPOSITORY / "examples")
    monkeypatch.chdir(top)
    for module in (paths, recipes):
        monkeypatch.setattr(module, "shared_dir", lambda: top)
    return top


def _block(page: str, content: str) -> str:
    (block,) = [block for block in yaml_blocks(REPOSITORY / page) if content in block]
    return block


# --- Everything parses. ---


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_parses(command: Command, checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLEANED", "cleaned")
    words = program(command.text)
    if words is None:
        return
    if command.comment.startswith("error"):
        with pytest.raises(ConfigError):
            CHECKS[words[0]](words[1:])
    else:
        CHECKS[words[0]](words[1:])


def program(text: str) -> list[str] | None:
    """Words of the cram, composer, make or python command in a shell command; None if it has none."""
    text = text.replace(".venv/bin/", "").replace("$kind", "run").replace("$seed", "1")
    if quoted := re.search(r"bash -c '(.*)'", text):
        text = quoted[1]
    words = shlex.split(text)
    found = [number for number, word in enumerate(words) if word in PROGRAMS]
    if not found or words[0] == "sudo":
        return None
    ends = [number for number, word in enumerate(words) if word.strip(";") in {">", "|", "done", ""} or word[-1] == ";"]
    end = next((number for number in ends if number > found[0]), len(words))
    return words[found[0] : end]


def check_cram(words: list[str]) -> None:
    options, rest = build_parser().parse_known_args(words)
    options.overrides = [*getattr(options, "overrides", []), *rest]
    assert not any(item.startswith("-") for item in rest), f"unknown option in {rest}"
    assert not rest or hasattr(options, "yaml"), f"unrecognised {rest}"
    name = " ".join(words[:2]) if words[0] == "data" else words[0]
    if name in CONFIGURATIONS:
        CONFIGURATIONS[name](options)


def check_sweep(options: argparse.Namespace) -> None:
    overrides = [*options.set, *overrides_from(seeds=options.seeds, budget=options.budget)]
    config = compose(SweepConfig, sweep_file(options.sweep), overrides).config
    compose_run(config.run, [])


def check_data_build(options: argparse.Namespace) -> None:
    overrides = [*options.overrides, *overrides_from(partitions=options.partitions)]
    compose(DataBuildConfig, options.yaml, overrides)


def check_run(options: argparse.Namespace) -> None:
    devices = getattr(options, "devices", 1)
    budget = getattr(options, "budget", None)
    compose_run(options.yaml, [*options.overrides, *overrides_from(budget=budget)], devices)


def check_ablation(options: argparse.Namespace) -> None:
    leave_one_out(str(options.yaml), options.overrides, options.recipes.split(",") if options.recipes else None)


CONFIGURATIONS = {
    "train": check_run,
    "explain": check_run,
    "plan": check_run,
    "throughput": check_run,
    "ablate": check_ablation,
    "sweep": check_sweep,
    "eval": requested_protocol,
    "data build": check_data_build,
}


def check_composer(words: list[str]) -> None:
    launcher = argparse.ArgumentParser()
    launcher.add_argument("-n", type=int, default=1)
    for option in ("--world_size", "--node_rank", "--master_addr", "--master_port"):
        launcher.add_argument(option)
    script = words.index("train.py")
    options = launcher.parse_args(words[:script])
    compose_run(words[script + 1], words[script + 2 :], int(options.world_size or options.n))


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert words[0] in targets
    assert all(re.match(r"(ARGS|PYTEST_ARGS|PYTHON)=", word) for word in words[1:])
    for word in words[1:]:
        if word.startswith("ARGS="):
            compose_run("yamls/cram-cpu.yaml", shlex.split(word.removeprefix("ARGS=")))


def check_python(words: list[str]) -> None:
    if words[0] == "-m" and words[1] != "venv":
        assert find_spec(words[1]) is not None, f"no module {words[1]}"


CHECKS = {"cram": check_cram, "composer": check_composer, "make": check_make, "python": check_python}


BLOCKS = [(page_name(page), block) for page in PAGES for block in yaml_blocks(page)]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_a_yaml_block_follows_a_schema(page: str, block: str):
    assert any(accepts(kind, yaml.safe_load(block)) for kind in KINDS)


# --- Everything runs, or is listed. ---


def test_every_command_runs_or_is_listed_with_a_reason():
    listed = {part: reason for reason, parts in NOT_RUN.items() for part in parts}
    used = set()
    missing = []
    for command in COMMANDS:
        if command.text in [*QUICK, *SLOW] or command.page in WHOLE_PAGES:
            continue
        parts = [part for part in listed if part in command.text]
        used.update(parts)
        if not parts and program(command.text) is not None:
            missing.append(str(command))
    assert missing == [], "neither run nor listed in NOT_RUN"
    assert sorted(set(listed) - used) == [], "listed in NOT_RUN, but not in the docs"
    texts = {command.text for command in COMMANDS}
    assert [text for text in [*QUICK, *SLOW] if text not in texts] == [], "run here, but not in the docs"


def run_bash(script: str, folder: Path, seconds: int) -> str:
    """Run a script in the checkout with the programs of this environment; return its output."""
    programs = folder / ".venv" / "bin"
    programs.parent.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (folder / ".venv" / ".complete").touch()  # make must not set up an environment
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "CRAM_CACHE": str(folder.parent / "cache"),
    }
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", f'cram() {{ python -m cram_composer.cli "$@"; }}\n{script}'],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        finally:
            if process.poll() is None or script.rstrip().endswith("&"):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.mark.parametrize("text", QUICK)
def test_a_quick_command_runs(text: str, checkout: Path):
    command = next(command for command in COMMANDS if command.text == text)
    output = run_bash(bash_script([command]), checkout, 120)
    written = [path for path in checkout.glob("*/**/*") if path.suffix in (".md", ".json") and not path.is_symlink()]
    assert output.strip() or all(path.stat().st_size > 1000 for path in written)


@pytest.mark.slow
@pytest.mark.parametrize("page", WHOLE_PAGES)
def test_a_page_runs_from_start_to_end(page: str, checkout: Path):
    script = bash_script(commands(REPOSITORY / page), REPOSITORY / page)
    for text, shorter in WHOLE_PAGES[page].items():
        assert text in script
        script = script.replace(text, shorter)
    assert "held-out loss" in run_bash(script, checkout, 1200)


@pytest.mark.slow
@pytest.mark.parametrize("text", SLOW)
def test_a_slow_command_runs(text: str, checkout: Path):
    assert SLOW[text] in run_bash(text, checkout, 600)
