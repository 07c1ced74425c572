"""Records that cannot be read: the build stops at the first, or skips and counts them."""

from __future__ import annotations

import gzip
import re

import pytest

from cram_composer.data.manifest import load_manifest
from cram_composer.data.pipeline.build import build, config_hash
from cram_composer.errors import CramError

BAD_LINES = [b'{"text": "cut o\n', b'{"title": "no text"}\n', b'{"text": 5}\n']


@pytest.fixture
def damaged(corpus, config, tmp_path):
    """Return the configuration of a build from the corpus with three bad lines, and one of a truncated file."""
    lines = corpus.read_bytes().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join([*lines[:100], *BAD_LINES, *lines[100:]]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:20]))[:-9])
    config.sources[0].paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl.gz")]
    return config


def test_a_bad_record_ends_the_build_with_its_place(damaged, tmp_path):
    with pytest.raises(CramError, match=re.escape(f"{tmp_path}/a.jsonl:101: not valid JSON")) as error:
        build(damaged, progress=False)
    assert str(error.value).endswith("; mend it, or set on_bad_record=skip")


@pytest.mark.parametrize("partitions", [1, 3])
def test_bad_records_are_skipped_and_counted_once(damaged, capsys, partitions):
    damaged.on_bad_record, damaged.partitions, damaged.jobs = "skip", partitions, 1
    (source,) = load_manifest(build(damaged))["sources"]
    assert source["bad_records"] == 4
    problems = [r"a\.jsonl:101: not valid JSON", r"a\.jsonl:102: no column 'text' \(found: title\)"]
    problems += [r"a\.jsonl:103: column 'text' holds int", r"b\.jsonl\.gz: cannot be read: Truncated"]
    for example, problem in zip(source["bad_record_examples"], problems, strict=True):
        assert re.match(problem, example)
    assert 400 <= source["documents"] <= 420
    assert "warning: skipped 4 bad records; manifest.json has examples" in capsys.readouterr().err


@pytest.mark.parametrize("partitions", [1, 2])
def test_more_bad_records_than_allowed_end_the_build(damaged, partitions):
    damaged.on_bad_record, damaged.max_bad_records = "skip", 3
    damaged.partitions, damaged.jobs = partitions, 1
    with pytest.raises(CramError, match=r"more than 3 bad records, such as .*; mend the text or raise max_bad_records"):
        build(damaged, progress=False)


def test_a_limit_without_skipping_is_refused_and_neither_changes_the_data_set(config):
    before = config_hash(config)
    config.max_bad_records = 5
    with pytest.raises(CramError, match="max_bad_records: has no effect with on_bad_record=fail"):
        build(config, progress=False)
    config.on_bad_record = "skip"
    assert config_hash(config) == before
