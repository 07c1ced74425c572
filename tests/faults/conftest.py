"""Options, buckets, and the undisturbed run with which every other run is compared."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.data_sets import write_data_set
from tests.faults.scene import ROWS, STEPS, Fault, Scene
from tests.servers import Bucket, S3Server
from tests.services.object_stores import Azurite, GoogleEmulator, ObjectBucket, ObjectServer

AnyServer = S3Server | ObjectServer
AnyBucket = Bucket | ObjectBucket

_EPOCH = 128  # blocks
_SEED = 17  # of the run's configuration


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="run the whole fault matrix instead of a subset")
    parser.addoption("--write-table", action="store_true", help="write the results to docs/explanation/reliability.md")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--faults", default=False) or "faults" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("faults") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.get_closest_marker("faults") is None]


def pytest_configure(config: pytest.Config) -> None:
    # With xdist, the process that gathers the results writes the table.
    if config.getoption("--write-table", default=False) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Table(config))


class _Table:
    """Rewrites the table after every result, from the latest result of every case."""

    def __init__(self, config: pytest.Config) -> None:
        assert config.cache is not None
        self._cache = config.cache

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from tests.faults.table import write_table

        if report.when != "call":
            return
        results: dict[str, dict[str, Any]] = self._cache.get("faults/results", {})
        results.pop(report.nodeid, None)
        for name, value in report.user_properties:
            if name == "fault" and report.passed:
                assert isinstance(value, dict)
                results[report.nodeid] = value
        self._cache.set("faults/results", results)
        write_table(list(results.values()))


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same data set twice, as `none` and `zstd`; every block is a shard."""
    folder = tmp_path_factory.mktemp("sources")
    for compression in ("none", "zstd"):
        write_data_set(folder / compression, _EPOCH * ROWS, block_rows=ROWS, shard_blocks=1, compression=compression)
    return folder


@pytest.fixture(scope="session")
def order(sources: Path) -> list[str]:
    """Return the names of the shards in the order in which a run needs them."""
    from cram_composer.config.schema.data import DataConfig
    from cram_composer.data.loading.mixture import SelectedStream
    from cram_composer.data.loading.open_dataset import open_block_dataset
    from cram_composer.data.loading.prepare import prepare_dataset

    data = prepare_dataset(DataConfig(local=str(sources / "none")), True, lambda: None)
    blocks = open_block_dataset(data, [SelectedStream("train")], shuffle=True, seed=_SEED)
    shards = [blocks.shards[blocks.shard_of_block(int(block))] for block in blocks.epoch_order(0)]
    return [f"train/{shard.file_pairs[0][0].basename}" for shard in shards]


@pytest.fixture(scope="session")
def undisturbed(sources: Path, order: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the losses of a run without a fault, which reads the data set in place."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "data").symlink_to(sources / "none")
    scene = Scene(None, sources / "none", folder, order)
    scene.start(scene.command(0))
    assert scene.end(300.0) == 0, scene.output()
    assert len(scene.losses()) == STEPS
    return scene.losses()


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """Start Azurite."""
    yield from _started(Azurite, tmp_path_factory.mktemp("azurite"))


@pytest.fixture(scope="session")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """Start the emulator of Google Cloud Storage."""
    yield from _started(GoogleEmulator, tmp_path_factory.mktemp("google"))


def _started(kind: type[ObjectServer], folder: Path) -> Iterator[ObjectServer]:
    if kind.missing():
        pytest.skip(f"not installed: {kind.missing()}")
    server = kind(folder).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def stored(sources: Path) -> Callable[[AnyServer, str, str], AnyBucket]:
    """Return a function to buckets with a data set, which live as long as the server; tests undo their changes."""
    buckets: dict[tuple[str, str, str], AnyBucket] = {}

    def bucket(server: AnyServer, compression: str, use: str) -> AnyBucket:
        key = str(server.folder), compression, use
        if key not in buckets:
            buckets[key] = server.new_bucket()
            buckets[key].upload_folder(sources / compression, "data")
        return buckets[key]

    return bucket


@pytest.fixture
def make_scene(
    request: pytest.FixtureRequest,
    sources: Path,
    order: list[str],
    stored: Callable[[AnyServer, str, str], AnyBucket],
    tmp_path: Path,
) -> Iterator[Callable[[Fault], Scene]]:
    """Yield a function that prepares server, buckets and folders for a fault."""

    def make(fault: Fault) -> Scene:
        source = sources / fault.compression
        if not fault.server:
            shutil.copytree(source, tmp_path / "data")
            return Scene(None, source, tmp_path, order)
        server: AnyServer = request.getfixturevalue(fault.server).start()
        bucket = stored(server, fault.compression, "remote")
        mirror = stored(server, fault.compression, "mirror") if fault.mirrored else None
        names = order if fault.compression == "none" else [f"{name}.{fault.compression}" for name in order]
        return Scene(server, source, tmp_path, names, bucket, mirror)

    yield make
