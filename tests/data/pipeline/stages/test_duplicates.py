from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest
from rensa import RMinHash

from cram_composer.config.schema.data_build import ExactDuplicatesConfig, NearDuplicatesConfig
from cram_composer.data.pipeline.stages import duplicates
from cram_composer.data.pipeline.stages.duplicates import band_keys, document_key

FOX = "The quick brown fox jumps over the lazy dog, and that is all there is to it."


def words(rng: random.Random, count: int) -> list[str]:
    return [f"w{rng.randrange(10**9)}" for _ in range(count)]


def test_document_keys():
    exact, folded = ExactDuplicatesConfig(ignore_case=False), ExactDuplicatesConfig()
    assert document_key("a  b\n c", exact) == document_key(" a b c ", exact) != document_key("a bc", exact)
    assert document_key("A b", exact) != document_key("a b", exact)
    assert document_key("A Straße", folded) == document_key("a STRASSE", folded)
    assert document_key("", folded) == 0x2D06800538D394C2  # XXH3 of the empty input, from its specification


def test_near_duplicates_of_known_similarity_meet_as_often_as_the_formula_says():
    """Check 1 - (1 - s^rows)^bands on documents whose one-word shingles have similarity s exactly."""
    config = NearDuplicatesConfig(words=1)
    rng = random.Random(0)
    for shared in (60, 80, 90):
        met = 0
        for trial in range(400):
            common, mine, yours = words(rng, 2 * shared), words(rng, 100 - shared), words(rng, 100 - shared)
            both = [band_keys(" ".join(common + own), config, seed=trial) for own in (mine, yours)]
            met += bool(np.intersect1d(*both).size)
        similarity = 2 * shared / (2 * shared + 2 * (100 - shared))
        expected = 1 - (1 - similarity**config.rows) ** config.bands
        assert met / 400 == pytest.approx(expected, abs=0.08)


def test_unlike_documents_do_not_meet():
    rng = random.Random(1)
    keys = np.concatenate([band_keys(" ".join(words(rng, 50)), NearDuplicatesConfig(), 0) for _ in range(200)])
    assert len(np.unique(keys)) == len(keys) == 200 * 14


def test_case_and_punctuation_do_not_matter_and_order_does():
    config = NearDuplicatesConfig()
    keys = band_keys(FOX, config, 0)
    assert keys.dtype == np.uint64
    assert keys.shape == (14,)
    assert band_keys(FOX.upper().replace(" ", "\n--"), config, 0).tolist() == keys.tolist()
    assert not np.intersect1d(keys, band_keys(" ".join(FOX.split()[::-1]), config, 0)).size
    assert not np.intersect1d(keys, band_keys(FOX, config, 1)).size


@pytest.mark.parametrize("text", ["", "?!", "...", "Short text.", "one two three four"])
def test_short_texts_are_one_shingle(text):
    config = NearDuplicatesConfig()
    keys = band_keys(text, config, 0)
    assert band_keys(text, config, 0).tolist() == keys.tolist()
    assert not np.intersect1d(keys, band_keys(text + " more", config, 0)).size


def test_shingles_are_runs_of_words():
    tokens = FOX.casefold().replace(",", "").replace(".", "").split()
    hashes = duplicates._shingles(FOX, 5)
    runs = [" ".join(tokens[i : i + 5]) for i in range(len(tokens) - 4)]
    assert hashes.tolist() == [int(duplicates._shingles(run, 5)[0]) for run in runs]
    assert len(set(hashes.tolist())) == len(runs)
    # The position in the text does not matter.
    long = "é字 " * 100_000 + FOX
    assert duplicates._shingles(long, 5)[-len(runs) :].tolist() == hashes.tolist()


KNOWN = """
from rensa import RMinHash
import numpy as np
hashes = np.arange(1, 1001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
digest = RMinHash.digest_matrix_from_flat_token_hashes(hashes, np.array([0, 1000], np.uint64), 112, 7).to_rows()[0]
from cram_composer.config.schema.data_build import NearDuplicatesConfig
from cram_composer.data.pipeline.stages.duplicates import band_keys
text = "The quick brown fox jumps over the lazy dog, and that is all there is to it."
print(digest[:4], sum(digest), band_keys(text, NearDuplicatesConfig(bands=2), 3).tolist())
"""


@pytest.mark.parametrize("kernel", ["", "scalar", "avx2"])
def test_keys_are_the_same_in_every_process(kernel):
    """Detect a change of the signatures of rensa version 2 in a later release."""
    environment = {**os.environ, "RENSA_FORCE_KERNEL": kernel, "PYTHONHASHSEED": "5"}
    command = [sys.executable, "-c", KNOWN]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.split("\n")[0] == (
        "[99780609, 18898595, 76714985, 299052074] 11804950555 [7237049050471930838, 10050613045947537593]"
    )
    assert RMinHash.ALGORITHM_VERSION == 2


def test_long_documents_have_the_signature_of_all_their_shingles(monkeypatch):
    # Processed in parts, so that rensa starts no threads; each part fills all positions of the signature.
    text = " ".join(words(random.Random(2), 40_000))
    keys = band_keys(text, NearDuplicatesConfig(), 0)
    monkeypatch.setattr(duplicates, "_MAX_TOKENS", 1 << 16)
    assert band_keys(text, NearDuplicatesConfig(), 0).tolist() == keys.tolist()
    monkeypatch.setattr(duplicates, "_MAX_TOKENS", 1 << 12)
    assert band_keys(text, NearDuplicatesConfig(), 0).tolist() == keys.tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_no_thread_is_started():
    script = (
        "import os\nfrom cram_composer.data.pipeline.stages.duplicates import *\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "band_keys('a b c d ' * 125_000, NearDuplicatesConfig(), 0)\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    started = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert started.stdout.strip() == "0"
