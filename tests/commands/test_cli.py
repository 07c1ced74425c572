"""The `cram` command: versions, help with examples, completion, suggestions, and JSON on stdout."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import pwd
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from cram_composer.cli import build_parser, main
from cram_composer.commands.arguments import CommandParser
from cram_composer.config.paths import find_shared
from tests.conftest import SMALL

CPU = "yamls/cram-cpu.yaml"


def parsers(parser: argparse.ArgumentParser) -> Iterator[CommandParser]:
    assert isinstance(parser, CommandParser)
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


PARSERS = list(parsers(build_parser()))
EXAMPLES = [(parser.prog, example) for parser in PARSERS for example in parser.examples]


def exit_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.out == "" and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("parser", PARSERS, ids=[parser.prog for parser in PARSERS])
def test_help_ends_with_examples(parser: CommandParser):
    assert 1 <= len(parser.examples) <= 2
    assert parser.format_help().endswith("\n".join(f"  {example}" for example in parser.examples) + "\n")
    assert all(action.help for action in parser._actions if not isinstance(action, argparse._SubParsersAction))


@pytest.mark.parametrize(("prog", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_examples_belong_to_their_command_and_parse(prog: str, example: str):
    command = example.removeprefix('eval "$(').removesuffix(')"')
    assert f"{command} ".startswith(f"{prog} ")
    words = shlex.split(command)[1:]
    options, rest = build_parser().parse_known_args(words)
    assert not [word for word in rest if word.startswith("-")]
    assert not rest or hasattr(options, "overrides")
    for word in words:
        path = word.rpartition("=")[2]
        if path.startswith("yamls/"):
            find_shared(Path(path))
    if words[0] in ("train", "explain", "plan", "throughput", "ablate"):
        overrides = [word for word in (*options.overrides, *rest) if "=" in word]
        assert main(["explain", str(options.yaml), *overrides]) == 0


def test_versions_are_those_installed_and_need_no_torch():
    code = (
        "import sys; from cram_composer.cli import main\n"
        "try: main(['--version'])\n"
        "finally: assert not {'torch', 'composer', 'transformers'} & sys.modules.keys()"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    found = dict(line.split(" ", 1) for line in printed)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == version("torch") and found["composer"] == version("mosaicml")
    assert found["streaming"] == version("mosaicml-streaming") and found["transformers"] == version("transformers")
    assert (found["gpu"] == "none") or torch.cuda.is_available()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["explian"], "unknown command 'explian'; did you mean 'explain'?"),
        (["data", "biuld"], "unknown command 'biuld'; did you mean 'build'?"),
        (["zzz"], "unknown command 'zzz' (see 'cram --help')"),
        (["explain", CPU, "--devics", "2"], "unknown option '--devics'; did you mean '--devices'?"),
        (["runs", "--jsn"], "unknown option '--jsn'; did you mean '--json'? (see 'cram runs --help')"),
        (["export", "a", "b"], "unexpected argument 'b' (see 'cram export --help')"),
        (["eval", "x", "--device", "tpu"], "--device: must be one of auto, cuda, cpu, got 'tpu'"),
        (["explain", CPU, "-n", "0"], "argument -n/--devices: must be an integer >= 1, got '0'"),
        (["schema", "run", "--markdown"], "--markdown: not allowed with argument kind"),
        (["recipes", "--json", "--markdown"], "--markdown: not allowed with argument --json"),
        (["compare", "a", "b", "--json", "--output", "page.html"], "--output: not allowed with argument --json"),
        (["plan"], "required: FILE.yaml (see 'cram plan --help')"),
    ],
)
def test_mistakes_are_one_line_with_the_nearest_name(given: list[str], message: str, capsys):
    assert message in exit_line(capsys, *given)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_completion_script_names_every_command(shell: str, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(parser.prog.split()[-1] in script for parser in PARSERS)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["cram", "expl"], ["explain"]),
        (["cram", "data", "b"], ["build"]),
        (["cram", "explain", "--de"], ["--devices"]),
        (["cram", "eval", "x", "--device", "cu"], ["cuda"]),
        (["cram", "recipes", "whole-w"], ["whole-word-masking"]),
        (["cram", "train", "yamls/cram-c"], [CPU]),
    ],
)
def test_bash_completes(words: list[str], completed: list[str], tmp_path: Path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "cram.bash"
    script.write_text(capsys.readouterr().out)
    lines = [
        f"source {script}",
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_cram cram {words[-1]}",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    printed = subprocess.check_output(["bash", "-c", "\n".join(lines)], text=True)
    assert printed.split() == completed


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipes", "--json"],
        ["recipes", "ema", "--json"],
        ["explain", CPU, "--json"],
        ["explain", CPU, "seed=3", "--diff", CPU, "--json"],
        ["runs", "{runs}", "--json"],
        ["data", "inspect", "{data}", "--json"],
        ["plan", CPU, "--flops", "1e9", "data.local={data}", *SMALL, "--json"],
        ["plan", CPU, "--calibrate", "1", "budget=1h", "data.local={data}", *SMALL, "train.threads=1", "--json"],
        ["sweep", "masking-rate", "--set", f"run={CPU}", "--report", "--output", "{runs}", "--json"],
    ],
    ids=" ".join,
)
def test_json_is_all_that_stdout_has(arguments: list[str], tiny_data: Path, tmp_path: Path, capfd):
    places = {"runs": tmp_path, "data": tiny_data}
    assert main([item.format(**places) if "{" in item else item for item in arguments]) == 0
    json.loads(capfd.readouterr().out)


def test_every_command_that_prints_results_has_json():
    with_json = {parser.prog for parser in PARSERS if "--json" in parser._option_string_actions}
    others = "train|schema|export|push|demo|report|branch|extend|completion|data|data build"
    assert {parser.prog for parser in PARSERS} - with_json == {"cram", *(f"cram {name}" for name in others.split("|"))}


def test_explained_json_has_value_source_and_replaced_values(capsys):
    assert main(["explain", CPU, "optimizer.lr=2e-2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    entry = printed["values"]["optimizer.lr"]
    assert (entry["value"], entry["source"], entry["replaced"][0]["source"]) == (0.02, "command line", CPU)
    assert main(["explain", CPU, "seed=3", "--diff", CPU, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"seed": {"here": 3, "there": 17}}


def test_a_user_without_a_passwd_entry_gets_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    with pytest.raises(KeyError):
        getpass.getuser()
    monkeypatch.setenv("USER", "")  # restored after the test
    assert main(["recipes", "--json"]) == 0
    assert getpass.getuser() == f"uid-{os.getuid()}"
