from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cram_composer.data.pipeline.document_store import Chunk, DocumentStore, DocumentWriter
from tests.conftest import REPOSITORY


@pytest.mark.slow  # half a minute; test_pages_of_read_text_are_freed is a quick part of it
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_below_the_stated_bound_and_below_the_text():
    program = ["-m", "benchmarks.data_build_memory", "--megabytes", "24", "--sample-mib", "4", "--shuffle-mib", "1"]
    done = subprocess.run([sys.executable, *program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["token_mib"] > 10 * 1, "too few tokens to test the shuffle"
    assert result["growth_mib"] < result["bound_mib"] == 264


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_pages_of_read_text_are_freed(tmp_path):
    def mapped() -> float:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"RssFile:\s+(\d+) kB", status)[1]) / 1024

    with DocumentWriter(tmp_path, 0) as writer:
        for _ in range(48):
            writer.add(Chunk(0, 0, True, True, "x" * (1 << 20)))
    texts = DocumentStore(tmp_path, 0)
    before = mapped()
    read = [texts.read_bytes(number) for number in range(len(texts))]
    assert mapped() > before + 40
    texts.release()
    assert mapped() < before + 8
    assert texts.read_bytes(47) == read[47], "freed pages can be read again"
