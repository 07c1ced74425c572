"""Names from data sets, buckets, records and the command line never lead out of their folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cram_composer.cli import main
from cram_composer.config.schema.data import DataConfig
from cram_composer.data.loading.prepare import prepare_dataset
from cram_composer.errors import ConfigError, CramError
from cram_composer.runs.folder import RunFolder
from cram_composer.runs.mirror import RunMirror
from cram_composer.storage.client import Storage
from cram_composer.storage.paths import UnsafePathError, resolve_inside
from tests.conftest import REPOSITORY
from tests.data.data_sets import write_data_set

OUTSIDE = ("/etc/passwd", "..", "../x", "a/../../x", "a/./b", "a//b", "", "a\0b", "a\nb", "a/", 7, None)


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_are_no_plain_relative_paths_are_refused_in_one_line(tmp_path: Path, name: Any) -> None:
    with pytest.raises(UnsafePathError, match=r"^index\.json: ") as error:
        resolve_inside(tmp_path, name, "index.json")
    assert "\n" not in str(error.value) and "\0" not in str(error.value)


def test_links_may_stay_inside_but_not_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "inner").symlink_to(root / "a")
    (root / "outer").symlink_to(tmp_path)
    (tmp_path / "link-to-root").symlink_to(root)
    for allowed in ("a/b", "..a", "with space/ü", "inner/b"):
        assert resolve_inside(root, allowed, "x") == root / allowed
    assert resolve_inside(tmp_path / "link-to-root", "a/b", "x") == tmp_path / "link-to-root" / "a" / "b"
    for refused in ("outer", "outer/b"):
        with pytest.raises(UnsafePathError, match=r"is a link out of .*; replace the link by the files"):
            resolve_inside(root, refused, "x")


def _rewrite(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _basename(key: str, name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        _rewrite(root / "train/index.json", lambda index: index["shards"][0][key].update(basename=name))

    return change


def _split_name(root: Path) -> None:
    def change(manifest: Any) -> None:
        manifest["splits"]["../../evil"] = manifest["splits"].pop("train")
        manifest["streams"] = ["../../evil"]

    _rewrite(root / "manifest.json", change)


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "raw .. ": (_basename("raw_data", "../../../evil"), r"index\.json: '\.\./\.\./\.\./evil' is not a plain relative"),
    "zip .. ": (_basename("zip_data", "../../../evil"), r"index\.json: '\.\./\.\./\.\./evil' is not a plain relative"),
    "raw absolute": (_basename("raw_data", "/tmp/evil"), r"index\.json: '/tmp/evil' is not a plain relative path"),
    "raw NUL": (_basename("raw_data", "a\0b"), "contains invisible characters"),
    "raw number": (_basename("raw_data", 5), "5 is not a path"),  # type: ignore[arg-type]
    "split": (_split_name, r"manifest\.json: splits: '\.\./\.\./evil' is not a name of a split"),
}


@pytest.mark.parametrize("kind", ["local", "remote"])
@pytest.mark.parametrize("case", FOREIGN)
def test_data_set_cannot_name_files_elsewhere(tmp_path: Path, case: str, kind: str) -> None:
    data = write_data_set(tmp_path / "deep" / "source", 64, compression="zstd")
    change, message = FOREIGN[case]
    change(data)
    (tmp_path / "evil").write_text("precious")
    cache = tmp_path / "deep" / "cache"
    places = {"local": {"local": str(data)}, "remote": {"local": str(cache), "remote": str(data)}}
    before = sorted(path for path in tmp_path.rglob("*") if cache not in (path, *path.parents))
    with pytest.raises(CramError, match=message) as error:
        prepare_dataset(DataConfig(**places[kind]), True, lambda: None)
    assert "\n" not in str(error.value)
    assert sorted(path for path in tmp_path.rglob("*") if cache not in (path, *path.parents)) == before
    assert (tmp_path / "evil").read_text() == "precious" and not [path for path in cache.rglob("*") if path.is_file()]


def test_cache_with_a_link_is_not_cleaned_through_it(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "source", 64)
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    prepare_dataset(DataConfig(local=str(cache), remote=str(data)), True, lambda: None)
    victim = elsewhere / "shard.00000.mds"
    elsewhere.mkdir()
    victim.write_text("precious")
    (cache / "train" / "00000").symlink_to(elsewhere)
    with pytest.raises(CramError, match="is a link out of"):
        prepare_dataset(DataConfig(local=str(cache), remote=str(data)), True, lambda: None)
    assert victim.read_text() == "precious"


def test_private_file_linked_from_a_tokenizer_is_not_copied_into_the_run(tmp_path: Path) -> None:
    data = write_data_set(tmp_path / "source", 64)
    (tmp_path / "credentials").write_text("private")
    (data / "tokenizer" / "vocab.txt").symlink_to(tmp_path / "credentials")
    with pytest.raises(CramError, match=r"vocab\.txt is a link out of"):
        prepare_dataset(DataConfig(local=str(data)), True, lambda: None)


@pytest.mark.parametrize("key", ["checkpoints/../../../evil.pt", "tokenizer/../../evil", "tokenizer//evil"])
def test_bucket_cannot_restore_files_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # A bucket can hold such keys, a folder cannot.
    there = tmp_path / "there" / "r"
    (there / "checkpoints").mkdir(parents=True)
    (there / "record.json").write_text('{"format_version": 2}')
    monkeypatch.setattr(Storage, "list_sizes", lambda self, prefix="": {"record.json": 21, key: 5})
    folder = RunFolder(tmp_path / "runs" / "r")
    with pytest.raises(UnsafePathError, match=re.escape(f"{there}: '{key}' is not a plain relative path")):
        RunMirror(folder, str(there.parent), keep=2).restore()
    assert not folder.path.exists() and not (tmp_path / "evil").exists() and capsys.readouterr().out == ""


NAMES = {
    "run": ["train", "yamls/cram-cpu.yaml", "run_name=../../evil"],
    "absolute run": ["train", "yamls/cram-cpu.yaml", "run_name=/tmp/evil"],
    "sweep": ["sweep", "masking-rate", "--set", "name=../../evil", "--yes"],
}


@pytest.mark.parametrize("case", NAMES)
def test_names_of_runs_and_sweeps_stay_in_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(NAMES[case]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "evil' is not a plain relative path; use a name such as my-run" in line
    assert list(tmp_path.iterdir()) == []


def test_variants_become_folders_of_the_sweep(tmp_path: Path) -> None:
    from cram_composer.config.schema.sweep import SweepConfig
    from cram_composer.sweeps.plan import plan_trials

    hidden = SweepConfig.model_validate({"run": "yamls/cram-cpu.yaml", "variants": {"../../evil": {}}})
    with pytest.raises(ConfigError, match="variant '../../evil': run_name: must name a folder below runs_dir"):
        plan_trials(hidden, "own.yaml", tmp_path / "runs")
    sweep = SweepConfig.model_validate({"run": "yamls/cram-cpu.yaml", "variants": {"/evil": {}, "a/../../b": {}}})
    for trial in plan_trials(sweep, "own.yaml", tmp_path / "runs"):
        assert trial.path.parent == trial.log.parent == tmp_path / "runs"
        assert resolve_inside(tmp_path / "runs", trial.path.name, "x")


# Modules that join names of an index, a manifest, a listing or a record to a folder, and how each keeps them inside.
GUARDS = {
    "data/manifest.py": "resolve_inside(",
    "data/manifest_checks.py": "SPLIT_NAME",
    "data/loading/preflight.py": "resolve_inside(",
    "data/loading/shard_stream.py": "resolve_inside(",
    "data/loading/block_dataset.py": "plain_name(",
    "data/pipeline/shard_writer.py": "MDSWriter(",  # the names that it has just written
    "data/pipeline/publish.py": "read_index(",
    "data/pipeline/sources/files.py": "resolve_inside(",
    "data/pipeline/sources/tables.py": '"basename": name',  # the name of a file that files.py found
    "analysis/dataset/read.py": "read_index_entries(",
    "analysis/dataset/page.py": 'manifest["splits"]',  # text of a page
    "models/card.py": 'manifest["splits"]',  # text of a page
    "models/card_metadata.py": 'model_name=record["run_name"]',  # text of a page
    "train/export.py": '"run_name": record["run_name"]',  # text in the header of the weights
    "planning/run_spec.py": 'manifest["splits"]',  # counts
    "data/loading/open_dataset.py": 'manifest["splits"]',  # counts of selected streams
    "runs/mirror.py": "resolve_inside(",
    "runs/reproduce.py": "plain_name(",
    "storage/client.py": "def list_sizes",
    "storage/providers.py": "def list_sizes",
}
FOREIGN_NAMES = re.compile(r"basename\b|list_sizes\(|manifest\[\"splits\"\]|record\[['\"]run_name")


def test_modules_that_read_foreign_names_are_known_and_guarded() -> None:
    package = REPOSITORY / "cram_composer"
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if FOREIGN_NAMES.search(path.read_text(encoding="utf-8"))
    }
    assert found - GUARDS.keys() == set()
    for module in found:
        assert GUARDS[module] in (package / module).read_text(encoding="utf-8"), module
