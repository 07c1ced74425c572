"""Composition of defaults, recipes, YAML and command line; provenance; one-line errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.run import check_run
from cram_composer.errors import ConfigError

CPU = "yamls/cram-cpu.yaml"


def composed(*overrides: str):
    return compose(RunConfig, CPU, list(overrides))


def error_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_run(composed(*overrides).config, world_size=1)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_later_layers_win_and_are_remembered():
    result = composed("optimizer.lr=0.005", "budget=60s")
    assert result.config.optimizer.lr == 0.005
    assert result.provenance["optimizer.lr"] == "command line"
    assert result.overridden["optimizer.lr"] == [("recipe crammed-bert", 0.001), (CPU, 0.002)]
    assert result.overridden["budget.wall"] == [(CPU, "10m")]
    assert result.provenance["model.hidden_size"] == CPU
    assert result.provenance["schedule.name"] == "recipe crammed-bert"
    assert result.provenance["seed"] == "default"


def test_recipes_merge_in_order():
    result = composed("recipes=[crammed-bert,ema]")
    assert result.config.algorithms.ema.half_life == 0.01
    assert result.provenance["algorithms.ema.half_life"] == "recipe ema"
    assert composed().config.algorithms.ema is None


FILE = "crammed-bert,no-first-norm,bf16-residual,rope,muon"  # the recipes of cram-1gpu.yaml


@pytest.mark.parametrize(
    ("changes", "recipes"),
    [
        ("[+ema]", f"{FILE},ema"),
        ("+ema", f"{FILE},ema"),
        ("[-rope,+alibi,+ema]", "crammed-bert,no-first-norm,bf16-residual,muon,alibi,ema"),
        ("[-muon]", "crammed-bert,no-first-norm,bf16-residual,rope"),
    ],
)
def test_signs_change_the_list_of_the_file(changes: str, recipes: str):
    changed, whole = (compose(RunConfig, "yamls/cram-1gpu.yaml", [f"recipes={x}"]) for x in (changes, f"[{recipes}]"))
    assert ",".join(changed.config.recipes) == recipes
    assert changed.hash == whole.hash and changed.plain == whole.plain


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ("[rope,+ema]", "recipes: names with + or - change the file's list and names without one replace it; write "),
        ("[-muon]", f"recipes: -muon: is not a recipe of {CPU}, which has crammed-bert"),
        ("[+crammed-bert]", "recipes: 'crammed-bert' is named twice; remove one"),
        ("[+rpoe]", "recipes: no recipe 'rpoe'"),
    ],
)
def test_wrong_changes_are_one_line(changes: str, says: str):
    assert error_of(f"recipes={changes}").startswith(says)


@pytest.mark.parametrize("named", ["5", "[1]"])
def test_changes_to_what_is_no_list_of_names_are_one_line(named: str, tmp_path: Path):
    run = tmp_path / "run.yaml"
    run.write_text(f"recipes: {named}\n")
    with pytest.raises(ConfigError, match="^recipes: must be a list of names, such as .*run.yaml"):
        compose(RunConfig, run, ["recipes=[-ema]"])


def test_the_hash_follows_the_values_only():
    assert composed().hash == composed("budget=10m").hash != composed("budget=11m").hash


@pytest.mark.parametrize(
    ("override", "wall", "device_hours", "replay"),
    [
        ("budget=90m", "90m", None, None),
        ("budget.device_hours=24", None, 24.0, None),
        ("budget={replay: runs/x}", None, None, "runs/x"),
        ("budget.tokens=1e6", "10m", None, None),
    ],
)
def test_naming_one_clock_replaces_the_other(override: str, wall, device_hours, replay):
    budget = composed(override).config.budget
    assert (budget.wall, budget.device_hours, budget.replay) == (wall, device_hours, replay)


@pytest.mark.parametrize(
    ("overrides", "limits"),
    [
        (["budget={steps: 5}"], {"steps": 5}),
        (["budget={wall: null, steps: 5}"], {"steps": 5}),
        (["budget={tokens: 1e6}"], {"tokens": 1e6}),
        (["budget={wall: 2m, steps: 5}"], {"wall": "2m", "steps": 5}),
        (["budget.steps=5"], {"wall": "10m", "steps": 5}),
        (["budget.steps=5", "budget.wall=null"], {"steps": 5}),
        (["budget.steps=5", "budget=1h"], {"wall": "1h"}),
        (["budget={steps: 5}", "budget={tokens: 7}"], {"tokens": 7.0}),
        (["budget={steps: 5}", "budget.tokens=7"], {"steps": 5, "tokens": 7.0}),
        (["budget={steps: 5}", "budget={replay: runs/x}"], {"replay": "runs/x"}),
    ],
)
def test_a_whole_budget_replaces_and_a_dotted_key_refines(overrides: list[str], limits: dict):
    result = composed(*overrides)
    assert {name: limit for name, limit in result.config.budget if limit is not None} == limits
    assert "wall" in limits or result.overridden["budget.wall"] == [(CPU, "10m")]


def test_a_yaml_replaces_the_budget_of_its_recipe(recipe_folder: Path):
    add_recipe(recipe_folder, "a", "budget: {steps: 5}\n", kind="preset")
    (recipe_folder / "run.yaml").write_text("recipes: [a]\nbudget: 1m\ndata: {local: x}\n")
    budget = compose(RunConfig, recipe_folder / "run.yaml", []).config.budget
    assert (budget.wall, budget.steps) == ("1m", None)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("budgt=3", ["command line", "budgt: unknown key", "'budget'"]),
        ("train.compil=off", ["command line", "train.compil", "'compile'"]),
        ("train.batch_size=x", ["command line", "train.batch_size", "must be an integer, got 'x'"]),
        ("train.compile=fll", ["command line", "train.compile", "'full'"]),
        ("recipes=[crammd-bert]", ["crammd-bert", "'crammed-bert'"]),
        ("recipes=[crammed-bert,ema,ema]", ["'ema'", "twice"]),
        ("recipes=3", ["recipes", "list"]),
        ("budget=3x", ["budget.wall", "3x", "1h30m"]),
        ("budget=60", ["budget.wall", "600s"]),
        ("budget=null", ["budget: no limit"]),
        ("nonsense", ["'nonsense'", "key=value"]),
        ("optimizer.lr=-1", ["optimizer.lr: must be >= 0, got -1"]),
        ("optimizer.lr=nan", ["optimizer.lr: must be a finite number"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas: has too few values"]),
        ("train=3", ["command line", "train: must be a mapping, got 3"]),
        ("train.batch_size=true", ["train.batch_size: must be a number, got true"]),
        ("train.batch_size=100", ["train.batch_size", "100", "96 or 112"]),
        ("model={architecture: hf}", ["model.hf_name"]),
        ("model={architecture: hf, hf_name: bert, document_masking: true}", ["model.document_masking"]),
        ("data={build: null}", ["data"]),
        ("schedule.name=cosin", ["schedule.name", "'cosine'"]),
        ("optimizer.betas=[0.9,{]", ["command line", "YAML"]),
        ("data.local=${oc.env:NO_SUCH_VARIABLE}", ["command line", "data.local: the environment variable NO_SUCH"]),
    ],
)
def test_every_mistake_is_one_line_that_says_where(override: str, parts: list[str]):
    message = error_of(override)
    for part in parts:
        assert part in message, message


def test_patience_needs_evaluations():
    message = error_of("train.early_stop={patience: 2}", "eval.interval=0")
    assert message.startswith("train.early_stop.patience: counts evaluations") and "set eval.interval" in message


def test_the_first_batch_is_divided_among_devices():
    result = composed("algorithms.batch_size_ramp.initial_batch_size=9", "train.device_train_microbatch_size=8")
    check_run(result.config, world_size=1)
    with pytest.raises(ConfigError, match=r"initial_batch_size: must be a multiple of the 2 devices.*set 8 or 10"):
        check_run(result.config, world_size=2)


def test_an_error_in_a_file_names_the_file(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("trian: {}\n")
    with pytest.raises(ConfigError, match=r"trian: unknown key; did you mean 'train'\? \(set in .*mine\.yaml\)"):
        compose(RunConfig, path, [])
    path.write_text("a: [")
    with pytest.raises(ConfigError, match=r"mine\.yaml: not valid YAML"):
        compose(RunConfig, path, [])
    with pytest.raises(ConfigError, match="no such file"):
        compose(RunConfig, tmp_path / "none.yaml", [])


def test_words_that_yaml_takes_for_booleans_stay_words():
    assert composed("train.compile=off").config.train.compile == "off"


@pytest.fixture
def recipe_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for recipes, beside a run."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "run.yaml").write_text("budget: 1m\ndata: {local: x}\n")
    monkeypatch.setattr("cram_composer.config.recipes.shared_dir", lambda: tmp_path)
    return tmp_path


def add_recipe(folder: Path, name: str, values: str, kind: str = "ingredient", extra: str = "") -> None:
    card = f"card: {{kind: {kind}, summary: s, source: s, expected: e, measured: m, cost: c{extra}}}\n"
    (folder / "recipes" / f"{name}.yaml").write_text(card + values)


def test_needs_and_conflicts_of_recipes_are_checked(recipe_folder: Path):
    run = recipe_folder / "run.yaml"
    add_recipe(recipe_folder, "a", "", extra=", needs: [b]")
    add_recipe(recipe_folder, "b", "", extra=", conflicts: {c: they are enemies}")
    add_recipe(recipe_folder, "c", "seed: 5\n")
    (recipe_folder / "recipes" / "d.yaml").write_text("card: {summary: s}\n")
    add_recipe(recipe_folder, "e", "", kind="side dish")
    with pytest.raises(ConfigError, match="'a' needs 'b'"):
        compose(RunConfig, run, ["recipes=[a]"])
    for both in ("[b,c]", "[c,b]"):
        with pytest.raises(ConfigError, match="exclude each other: they are enemies; remove one"):
            compose(RunConfig, run, [f"recipes={both}"])
    with pytest.raises(ConfigError, match=r"d\.yaml: card"):
        compose(RunConfig, run, ["recipes=[d]"])
    with pytest.raises(ConfigError, match=r"e\.yaml: card\.kind: must be one of preset, ingredient, got 'side dish'"):
        compose(RunConfig, run, ["recipes=[e]"])
    assert compose(RunConfig, run, ["recipes=[c]"]).config.seed == 5


def test_no_recipe_undoes_another(recipe_folder: Path):
    run = recipe_folder / "run.yaml"
    add_recipe(recipe_folder, "whole", "seed: 1\noptimizer: {lr: 0.1}\n", kind="preset")
    add_recipe(recipe_folder, "other", "seed: 2\n", kind="preset")
    add_recipe(recipe_folder, "fast", "optimizer: {lr: 0.2, eps: 0.1}\n")
    add_recipe(recipe_folder, "slow", "optimizer: {lr: 0.01}\n")
    add_recipe(recipe_folder, "fast-too", "optimizer: {lr: 0.2}\n")
    assert compose(RunConfig, run, ["recipes=[whole,fast,fast-too]"]).config.optimizer.lr == 0.2
    with pytest.raises(ConfigError, match=r"'fast' and 'slow' exclude each other: both set optimizer.lr \(0.2, 0.01\)"):
        compose(RunConfig, run, ["recipes=[whole,fast,slow]"])
    with pytest.raises(ConfigError, match="'whole' and 'other' exclude each other: both are presets"):
        compose(RunConfig, run, ["recipes=[whole,other]"])
    with pytest.raises(ConfigError, match="'whole' is a preset and would override 'fast'; put it first"):
        compose(RunConfig, run, ["recipes=[fast,whole]"])


def test_ingredients_of_crambert_are_refused_for_another_architecture(recipe_folder: Path):
    run = recipe_folder / "run.yaml"
    add_recipe(recipe_folder, "gelu", "model: {ffn: gelu}\n")
    hf = ["model.architecture=hf", "model.hf_name=bert"]
    with pytest.raises(ConfigError, match=r"'gelu' sets model\.ffn, which only CramBERT has, .*'bert'"):
        compose(RunConfig, run, ["recipes=[gelu]", *hf])
    assert compose(RunConfig, run, hf).config.model.hf_name == "bert"


def test_an_ingredient_that_repeats_a_default_suits_another_architecture(recipe_folder: Path):
    run = recipe_folder / "run.yaml"
    run.write_text(f"{run.read_text()}\nmodel: {{architecture: hf, hf_name: bert}}\n")
    add_recipe(recipe_folder, "undone", "model: {loss_kernel: full}\n")
    assert compose(RunConfig, run, ["recipes=[undone]"]).config.model.hf_name == "bert"


def test_every_shipped_run_composes():
    for path in sorted(Path("yamls").glob("*.yaml")):
        check_run(compose(RunConfig, path, []).config, world_size=1)


def test_a_mistake_is_reported_before_anything_heavy_is_imported():
    code = (
        "import sys; from cram_composer.cli import main; status = main(['train', 'yamls/cram-cpu.yaml', 'trian.x=1']);"
        "heavy = {'torch', 'composer', 'transformers', 'streaming'} & set(sys.modules); print(status, sorted(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "2 []"
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
