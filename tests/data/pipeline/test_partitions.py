"""Builds in partitions: the same splits, one data set, and deterministic bytes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from streaming import LocalDataset
from transformers import AutoTokenizer

from cram_composer.config.schema.data_build import (
    DataBuildConfig,
    ExactDuplicatesConfig,
    FilesConfig,
    NearDuplicatesConfig,
    PackingConfig,
    RepeatedSpansConfig,
    StagesConfig,
    TokenizerConfig,
)
from cram_composer.data.manifest import load_manifest, verify_dataset
from cram_composer.data.pipeline.build import build
from cram_composer.data.pipeline.partition import partition_pieces
from cram_composer.data.pipeline.sources import open_sources
from cram_composer.data.pipeline.workspace import Workspace
from cram_composer.errors import CramError
from tests.data.conftest import synthetic_documents
from tests.data.data_sets import rows_of
from tests.data.pipeline.test_build import files_of

ALL_DUPLICATES = StagesConfig(
    exact_duplicates=ExactDuplicatesConfig(),
    near_duplicates=NearDuplicatesConfig(),
    repeated_spans=RepeatedSpansConfig(length=50),
)


def words_of(root: Path, split: str) -> Counter:
    """Count the words of a split, except torn words at row ends."""
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    return Counter(word for row in tokenizer.batch_decode(rows_of(root, split)) for word in row.split()[1:-1])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return five files of different documents."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"part{i}.jsonl" for i in range(5)]
    for i, path in enumerate(paths):
        documents = synthetic_documents(120 + 30 * i, seed=i)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return paths


def configuration(files: list[Path], output: Path, partitions: int) -> DataBuildConfig:
    return DataBuildConfig(
        name="test",
        output=str(output),
        sources=[FilesConfig(paths=[str(path) for path in files])],
        tokenizer=TokenizerConfig(vocab_size=400),
        packing=PackingConfig(sequence_length=32, block_rows=2),
        validation_fraction=0.1,
        partitions=partitions,
    )


@pytest.mark.parametrize("partitions", [1, 3, 7])
def test_every_document_is_in_exactly_one_partition(files, partitions):
    (source,) = open_sources([FilesConfig(paths=[str(path) for path in files])])
    everything = [piece.text for piece in source.pieces()]
    dealt = [piece.text for p in range(partitions) for piece in partition_pieces(source, p, partitions)]
    assert len(everything) == 900
    assert sorted(dealt) == sorted(everything)
    sizes = [sum(len(piece.text) for piece in partition_pieces(source, p, partitions)) for p in range(partitions)]
    assert max(sizes) < 2 * min(sizes)


def test_partitions_hold_what_one_does(files, tmp_path):
    one = build(configuration(files, tmp_path / "one", 1), progress=False)
    three = build(configuration(files, tmp_path / "three", 3), progress=False)
    manifest = load_manifest(three)
    verify_dataset(three, manifest)
    assert manifest["partitions"] == 3
    assert manifest["tokenizer_sha256"] == load_manifest(one)["tokenizer_sha256"]
    for split in ("train", "validation"):
        facts, expected = manifest["splits"][split], load_manifest(one)["splits"][split]
        assert (facts["documents"], facts["characters"]) == (expected["documents"], expected["characters"])
        left_out = 3 * 2 * 32 + 3 * 32  # less than one block, and one row per partition
        assert abs(facts["tokens"] - expected["tokens"]) <= left_out
        assert facts["tokens"] + facts["dropped_tokens"] == expected["tokens"] + expected["dropped_tokens"]
        assert facts["rows"] == len(rows_of(three, split))
        assert facts["blocks"] == LocalDataset(str(three / split)).size
        mine, theirs = words_of(three, split), words_of(one, split)
        assert sum((mine & theirs).values()) > 0.9 * sum(theirs.values())
    assert all(len(sample["rows"]) == 2 for sample in LocalDataset(str(three / "train")))
    assert {path.name for path in (three / "train").iterdir()} == {"index.json", "00000", "00001", "00002"}


def test_rows_of_all_partitions_are_shuffled_together(files, tmp_path):
    # Documents of the last file have numbers above those of all others.
    root = build(configuration(files, tmp_path / "out", 3), progress=False)
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    index = json.loads((root / "train" / "index.json").read_text())
    assert len(index["shards"]) == 3
    texts = tokenizer.batch_decode(rows_of(root, "train"))
    late = np.array(
        [any(word.rstrip(".").isdigit() and int(word.rstrip(".")) >= 210 for word in t.split()) for t in texts]
    )
    thirds = [part.mean() for part in np.array_split(late, 3)]
    assert min(thirds) > 0.3 * max(thirds) > 0


@pytest.mark.parametrize("stages", [StagesConfig(), ALL_DUPLICATES], ids=["plain", "duplicates"])
def test_same_seed_and_number_of_partitions_give_the_same_bytes(files, tmp_path, stages):
    config = configuration(files, tmp_path / "out", 3).model_copy(update={"stages": stages})
    first = files_of(build(config, progress=False))
    elsewhere = config.model_copy(update={"output": str(tmp_path / "again"), "jobs": 1})
    assert files_of(build(elsewhere, progress=False)) == first
    other = config.model_copy(update={"output": str(tmp_path / "other"), "seed": 1})
    assert files_of(build(other, progress=False))["train/00001/shard.00000.mds"] != first["train/00001/shard.00000.mds"]


def test_failed_partition_is_named_and_the_others_are_not_done_again(files, tmp_path, capfd):
    spoilt = tmp_path / "spoilt.jsonl"
    spoilt.write_text('{"text": "fine"}\n{"text": 3}\n')
    config = configuration([*files, spoilt], tmp_path / "out", 3)
    config.tokenizer.sample_bytes = 20_000  # does not reach the invalid line
    with pytest.raises(CramError, match=r"spoilt\.jsonl:2: column 'text' holds int, not text"):
        build(config, progress=False)
    assert "Traceback" not in capfd.readouterr().err
    assert list((tmp_path / "out.partial" / "failed").glob("encode.*"))
    assert not (tmp_path / "out").exists()


def test_little_text_is_written_by_fewer_partitions(files, tmp_path):
    config = configuration(files[:1], tmp_path / "out", 16)
    config.packing = PackingConfig(sequence_length=32, block_rows=64)
    manifest = load_manifest(build(config, progress=False))
    facts = manifest["splits"]["train"]
    assert facts["blocks"] * 64 == facts["rows"]
    assert facts["dropped_tokens"] < 64 * 32 + 16 * 32  # one block, and one row per partition
    config = configuration(files[:1], tmp_path / "less", 16)
    config.packing = PackingConfig(sequence_length=32, block_rows=4096)
    facts = load_manifest(build(config, progress=False))["splits"]["train"]
    assert facts["blocks"] == 1
    assert 0 < facts["rows"] < 4096


def test_partition_of_nothing_but_duplicates(files, tmp_path):
    (tmp_path / "copy.jsonl").write_text(files[0].read_text())
    config = configuration([files[0], tmp_path / "copy.jsonl"], tmp_path / "out", 2)
    config.stages = StagesConfig(exact_duplicates=ExactDuplicatesConfig())
    manifest = load_manifest(build(config, progress=False))
    assert sum(split["documents"] for split in manifest["splits"].values()) == 120
    assert manifest["stages"][0]["documents_in"] == 240


def test_limit_takes_the_same_text_for_any_number_of_partitions(files):
    (source,) = open_sources([FilesConfig(paths=[str(path) for path in files], max_characters=40_000)])
    expected = sorted(piece.text for piece in source.pieces())
    for partitions in (2, 9):
        found = [piece.text for p in range(partitions) for piece in partition_pieces(source, p, partitions)]
        assert sorted(found) == expected


@pytest.mark.parametrize("place", ["foreign", "out", "out/inside"])
def test_foreign_folder_is_never_used_as_work_folder(files, tmp_path, place):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    config = configuration(files, tmp_path / "out", 1).model_copy(update={"work": str(tmp_path / place)})
    with pytest.raises(CramError, match=r"work: .*choose another folder"):
        build(config, progress=False)
    assert (tmp_path / "foreign" / "thesis.tex").read_text() == "mine"


def test_half_removed_work_is_not_resumed(files, tmp_path, monkeypatch):
    config = configuration(files, tmp_path / "out", 1).model_copy(update={"work": str(tmp_path / "work")})
    before = files_of(build(config, progress=False))
    assert not (tmp_path / "work").exists()
    remove = Workspace.remove

    def killed(self: Workspace) -> None:
        if self.has_results():  # after the move, before the removal is complete
            raise ZeroDivisionError
        remove(self)

    monkeypatch.setattr(Workspace, "remove", killed)
    with pytest.raises(ZeroDivisionError):
        build(config.model_copy(update={"overwrite": True}), progress=False)
    monkeypatch.undo()
    assert (tmp_path / "work" / "done").is_dir()
    assert files_of(build(config.model_copy(update={"overwrite": True}), progress=False)) == before


def test_streams_are_separate_splits(files, tmp_path):
    config = configuration(files, tmp_path / "out", 2)
    config.sources = [
        FilesConfig(paths=[str(path) for path in files[:2]], stream="small"),
        FilesConfig(paths=[str(path) for path in files[2:]], stream="large"),
    ]
    root = build(config, progress=False)
    manifest = load_manifest(root)
    verify_dataset(root, manifest)
    assert manifest["streams"] == ["train-small", "train-large"]
    assert set(manifest["splits"]) == {"train-small", "train-large", "validation"}
    assert sum(manifest["splits"][split]["documents"] for split in manifest["splits"]) == 900
    assert manifest["splits"]["train-large"]["tokens"] > manifest["splits"]["train-small"]["tokens"]
    assert [source["stream"] for source in manifest["sources"]] == ["train-small", "train-large"]


FAKE_SBATCH = """#!{python}
# Accepts an array of jobs like sbatch and runs its tasks one after another in the background; one job id per phase.
import os, re, shutil, subprocess, sys, time
folder = os.path.dirname(__file__)
if sys.argv[1] != "--run":
    number = len([name for name in os.listdir(folder) if name.startswith("job")])
    script = shutil.copy(sys.argv[-1], f"{{folder}}/job{{number}}")
    subprocess.Popen([__file__, "--run", script, str(number)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("Submitted batch job", number)
    sys.exit()
text, number = open(sys.argv[2]).read(), sys.argv[3]
time.sleep(1)  # submitit moves the files of the jobs into place after it has submitted them
command = re.search(r"\\S+ -u -m submitit\\S* \\S+", text)[0]
for task in range(int(re.search(r"#SBATCH --array=0-(\\d+)", text)[1]) + 1):
    environment = dict(os.environ, SUBMITIT_EXECUTOR="slurm", SLURM_JOB_ID=number, SLURM_ARRAY_JOB_ID=number,
        SLURM_ARRAY_TASK_ID=str(task), SLURM_JOB_NUM_NODES="1",
        SLURM_NTASKS="1", SLURM_NODEID="0", SLURM_PROCID="0", SLURM_LOCALID="0",
        SLURM_JOB_NODELIST="node", SLURM_CPUS_PER_TASK="1")
    subprocess.run(command, shell=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    open(f"{{folder}}/over{{number}}_{{task}}", "w").close()
"""
FAKE_SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
for job in 0 1 2 3 4 5; do for task in 0 1 2; do
    [ -e "$(dirname "$0")/over${job}_$task" ] && state=COMPLETED || state=RUNNING
    echo "${job}_$task|$state|node"
done; done
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put stand-ins for Slurm's commands first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    nothing = "#!/bin/sh\n"
    commands = {
        "sbatch": FAKE_SBATCH.format(python=sys.executable),
        "sacct": FAKE_SACCT,
        "srun": nothing,
        "scancel": nothing,
    }
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_slurm_array_makes_the_same_shards(files, tmp_path, slurm):
    local = build(configuration(files, tmp_path / "local", 3), progress=False)
    config = configuration(files, tmp_path / "slurm", 3).model_copy(
        update={"executor": "slurm", "slurm": {"slurm_partition": "cpu"}}
    )
    assert files_of(build(config, progress=False)) == files_of(local)


@pytest.mark.parametrize(
    ("update", "says"),
    [
        ({"executor": "slurm", "jobs": 2}, "^jobs: has no effect with executor=slurm"),
        ({"slurm": {"slurm_partition": "cpu"}}, "^slurm: has no effect with executor=local"),
    ],
)
def test_settings_of_the_other_executor_are_refused(files, tmp_path, update, says):
    with pytest.raises(CramError, match=says):
        build(configuration(files, tmp_path / "out", 3).model_copy(update=update), progress=False)


def test_failure_in_a_slurm_job_is_the_same_one_line(files, tmp_path, slurm):
    spoilt = tmp_path / "spoilt.jsonl"
    spoilt.write_text('{"text": "fine"}\n{"text": 3}\n')
    config = configuration([*files, spoilt], tmp_path / "out", 3).model_copy(update={"executor": "slurm"})
    config.tokenizer.sample_bytes = 20_000
    with pytest.raises(CramError, match=r"spoilt\.jsonl:2: column 'text' holds int, not text") as error:
        build(config, progress=False)
    assert "\n" not in str(error.value)


def test_no_slurm_is_one_line(files, tmp_path, no_slurm):
    config = configuration(files, tmp_path / "out", 2).model_copy(update={"executor": "slurm"})
    with pytest.raises(CramError, match="Slurm cannot be used: .*srun"):
        build(config, progress=False)


@pytest.mark.slow
def test_worker_processes_end_with_their_parent(files, tmp_path):
    program = (
        "import sys; from pathlib import Path; from tests.data.pipeline.test_partitions import configuration\n"
        "from cram_composer.data.pipeline.build import build\n"
        "config = configuration([Path(p) for p in sys.argv[2:]], Path(sys.argv[1]), 4); config.jobs = 2\n"
        "import cram_composer.jobs.local as e\n"
        "wait = e.wait\n"
        "def told(*a, **k):\n"
        "    import multiprocessing; print(*[p.pid for p in multiprocessing.active_children()], flush=True)\n"
        "    import time; time.sleep(600)\n"
        "e.wait = told\n"
        "if __name__ == '__main__': build(config, progress=False)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    command = [sys.executable, str(script), str(tmp_path / "out"), *map(str, files)]
    repository = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
    deadline = time.monotonic() + 60
    while any(map(_runs, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_runs, children))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
