from __future__ import annotations

import json
import random

import xxhash

from cram_composer.data.pipeline.stages.examples import Examples, shorten, show_removed_span


def offers(count: int) -> list[tuple[str, str | None, str, int]]:
    rng = random.Random(0)
    fates = [("length", "too-short"), ("quality", "ellipses"), ("quality", "hash-signs"), ("any", None)]
    found = []
    for i in range(count):
        text = f"document {i // 2} " * 3  # every document occurs twice
        found.append((*rng.choice(fates), text, xxhash.xxh3_64_intdigest(text)))
    return found


def gathered(documents: list[tuple[str, str | None, str, int]]) -> Examples:
    examples = Examples(per_reason=5)
    for document in documents:
        examples.offer(*document)
    return examples


def test_partitions_give_what_one_pass_gives():
    documents = offers(500)
    whole = gathered(documents)
    for cut in (0, 3, 250, 499):
        parts = [gathered(documents[:cut]), gathered(documents[cut:])]
        for first, second in (parts, parts[::-1]):
            merged = Examples(per_reason=5)
            merged.merge(Examples.from_state(json.loads(json.dumps(first.state()))))
            merged.merge(second)
            assert json.dumps(merged.as_dict()) == json.dumps(whole.as_dict())


def test_the_smallest_keys_stay_and_copies_count_once():
    documents = offers(500)
    kept = sorted({(key, text) for _, reason, text, key in documents if reason is None})
    result = gathered(documents).as_dict()
    assert result["kept"] == [text for _, text in kept[:5]]
    assert {stage: set(reasons) for stage, reasons in result["dropped"].items()} == {
        "length": {"too-short"},
        "quality": {"ellipses", "hash-signs"},
    }
    assert all(len(texts) == 5 for reasons in result["dropped"].values() for texts in reasons.values())


def test_no_documents_give_no_examples():
    assert Examples().as_dict() == {"kept": [], "dropped": {}}


def test_long_texts_are_shortened():
    text = "".join(chr(0x4E00 + i) for i in range(1000))
    short = shorten(text, 100)
    assert len(short) == 100
    beginning, end = short.split(" […] ")
    assert text.startswith(beginning)
    assert text.endswith(end)
    assert len(end) > 20
    assert shorten(text, 1000) == text


def test_removed_spans_are_shown_in_their_place():
    text = "zuvor, früher: das hier ist doppelt, danach".encode()
    start, end = text.index(b"das"), text.index(b", danach")
    assert show_removed_span(text, start, end) == "zuvor, früher: ⟦das hier ist doppelt⟧, danach"
    assert show_removed_span(text, start, end, 36) == "üher: ⟦das hier ist doppelt⟧, dana"
    long = "é".encode() * 3000
    shown = show_removed_span(long, 1000, 5000, 120)
    assert shown.startswith("é" * 20 + "⟦é")
    assert shown.endswith("é⟧" + "é" * 20)
    assert len(shown) == 122
