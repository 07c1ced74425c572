"""Check a finished run without cram_composer: python .ci/check_cram.py RUN. Exit status 1 if a check fails.

The run must have finished, its model must beat a unigram model on held-out text, and its export must fill in a mask.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def check_finished(run: Path, record: dict[str, Any]) -> str:
    assert record["status"] == "finished", f"the run is {record['status']}: {record['reason']}"
    return f"{record['steps']} steps, {record['tokens']} tokens"


def check_beats_unigram(run: Path, record: dict[str, Any]) -> str:
    loss, unigram = record["metrics"]["validation_loss"], record["data"]["unigram_validation_nats"]
    numbers = f"held-out loss {loss:.4f} nats, unigram model {unigram:.4f}"
    assert loss < unigram, numbers
    return numbers


def check_fills_a_mask(run: Path, record: dict[str, Any]) -> str:
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

    export = run / "export"
    tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(export, trust_remote_code=True)
    fills = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")(
        f"The president of the United {tokenizer.mask_token} spoke.", top_k=3
    )
    words = [fill["token_str"] for fill in fills]
    assert len(set(words) - set(tokenizer.all_special_tokens)) == 3, words
    assert fills[0]["score"] > 1 / tokenizer.vocab_size, fills
    return f"The president of the United [MASK] spoke: {', '.join(words)}"


CHECKS: list[Callable[[Path, dict[str, Any]], str]] = [check_finished, check_beats_unigram, check_fills_a_mask]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    passed = 0
    for check in CHECKS:
        try:
            print(f"ok: {check(run, record)}", flush=True)
            passed += 1
        except Exception as error:  # the other checks still run
            print(f"FAILED: {check.__name__}: {type(error).__name__}: {error}", flush=True)
    print(f"{passed} passed, {len(CHECKS) - passed} failed")
    return 0 if passed == len(CHECKS) else 1


if __name__ == "__main__":
    sys.modules["cram_composer"] = None  # type: ignore[assignment]  # the export must not need it
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": scratch}
        status = main()
    sys.exit(status)
