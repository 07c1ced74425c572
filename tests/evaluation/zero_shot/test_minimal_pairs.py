"""Pseudo-log-likelihoods equal their definition and minicons; accuracies of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
import torch
from minicons.scorer import MaskedLMScorer
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from cram_composer.config.schema.evaluation import MinimalPairsConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.zero_shot.minimal_pairs import (
    Paradigm,
    SentencePair,
    read_parts,
    score_part,
    sentence_scores,
    summarize,
)
from tests.evaluation.tiny_folders import TEXT, save
from tests.evaluation.zero_shot.test_masked_scoring import scorer

SENTENCES = [*TEXT, "the sea", "kindness, unbelievable river", "zzz the Ω flows", "."]


def pll(folder: Path, sentence: str, within_word: bool) -> float:
    """Return the pseudo-log-likelihood, computed one position at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    words = [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(sentence.lower())]
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    ids = [2, *(piece for word in pieces for piece in word), 3]
    total, start = 0.0, 1
    for word in pieces:
        for at in range(len(word)):
            masked = torch.tensor([ids])
            masked[0, start + at : start + len(word) if within_word else start + at + 1] = 4
            with torch.inference_mode():
                total += float(model(masked).logits[0, start + at].log_softmax(-1)[word[at]])
        start += len(word)
    return total


@pytest.mark.parametrize("score", ["pll", "within-word-l2r"])
def test_scores_equal_a_loop_over_positions(score: str, tmp_path: Path):
    save(tmp_path)
    found = sentence_scores(scorer(tmp_path, 100), SENTENCES, SENTENCES, score)
    expected = [pll(tmp_path, sentence, score == "within-word-l2r") for sentence in SENTENCES]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "crambert", "crambert-shift"])
def test_scores_equal_minicons(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not hasattr(PreTrainedTokenizerFast, "batch_encode_plus"):  # removed in transformers 5; minicons calls it
        call = PreTrainedTokenizerFast.__call__
        monkeypatch.setattr(PreTrainedTokenizerFast, "batch_encode_plus", call, raising=False)
    save(tmp_path, kind)
    ours = scorer(tmp_path, 200)
    theirs = MaskedLMScorer(str(tmp_path), "cpu", trust_remote_code=True)
    kinds = {"pll": "original", "within-word-l2r": "within_word_l2r"}
    scores = {}
    for score, metric in kinds.items():
        scores[score] = sentence_scores(ours, SENTENCES, SENTENCES, score)
        expected = theirs.sequence_score(SENTENCES, reduction=lambda x: x.sum(0).item(), PLL_metric=metric)
        assert max(abs(one - other) for one, other in zip(scores[score], expected, strict=True)) < 1e-4
    assert scores["pll"] != pytest.approx(scores["within-word-l2r"], abs=1e-2)


def paradigm(*pairs: tuple[str, str]) -> Paradigm:
    return Paradigm("p", {}, [SentencePair(good, bad, f"f:{number}") for number, (good, bad) in enumerate(pairs, 1)])


def test_accuracy_counts_ties_half(tmp_path: Path):
    save(tmp_path)
    model = scorer(tmp_path, 100)
    low, high = sorted(TEXT[:2], key=lambda text: pll(tmp_path, text, False))
    same = ("The King", "the king")  # the tokenizer lower-cases
    found = score_part(paradigm((high, low), (low, high), (high, low), same), model, MinimalPairsConfig())
    assert found == {"accuracy": pytest.approx(62.5), "pairs": 4, "ties": 1, "groups": {}}


def test_swapped_sentences_and_an_untrained_model_are_at_chance(tmp_path: Path):
    save(tmp_path)
    generator = torch.Generator().manual_seed(3)
    words = " ".join(TEXT).split()

    def sentence() -> str:
        return " ".join(words[int(at)] for at in torch.randint(len(words), (5,), generator=generator))

    pairs = [(sentence(), sentence()) for _ in range(200)]
    model = scorer(tmp_path)
    one = score_part(paradigm(*pairs), model, MinimalPairsConfig())["accuracy"]
    other = score_part(paradigm(*[(bad, good) for good, bad in pairs]), model, MinimalPairsConfig())["accuracy"]
    assert one + other == pytest.approx(100.0)
    assert 36.0 < one < 64.0  # four standard deviations of 200 fair coins


def test_a_sentence_too_long_for_the_model_is_named(tmp_path: Path):
    save(tmp_path, model_max_length=8)
    with pytest.raises(CramError, match=r"f:2: the sentence has \d+ tokens, the model reads at most 8"):
        score_part(paradigm(("the sea", "the king"), ("the sea", TEXT[0])), scorer(tmp_path), MinimalPairsConfig())


def line(good: str = "a b", bad: str = "a c", **more: str) -> str:
    return json.dumps({"sentence_good": good, "sentence_bad": bad, **more}) + "\n"


def test_paradigms_are_read_with_their_names_and_groups(tmp_path: Path):
    (tmp_path / "second.jsonl").write_text(line() + "\n" + line("d", "e"))
    text = line(UID="first", field="syntax", linguistics_term="islands") * 2
    with pyarrow.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as file:
        file.write(text.encode())
    with pyarrow.output_stream(str(tmp_path / "b.jsonl.gz"), compression="gzip") as file:
        file.write(line(UID="third", field="syntax", linguistics_term="agreement").encode())
    (tmp_path / "README.md").write_text("no pairs")
    found = read_parts(MinimalPairsConfig(), tmp_path)
    assert [(one.name, one.groups, len(one.pairs)) for one in found] == [
        ("first", {"field": "syntax", "linguistics_term": "islands"}, 2),
        ("third", {"field": "syntax", "linguistics_term": "agreement"}, 1),
        ("second", {}, 2),
    ]
    assert found[2].pairs[1] == SentencePair("d", "e", f"{tmp_path / 'second.jsonl'}:3")


def test_means_are_over_paradigms_whatever_their_size():
    def of(accuracy: float, pairs: int, field: str) -> dict:
        return {"accuracy": accuracy, "pairs": pairs, "ties": 0, "groups": {"field": field}}

    row = summarize(MinimalPairsConfig(), {"a": of(90.0, 1000, "x"), "b": of(60.0, 1, "x"), "c": of(30.0, 10, "y")})
    assert row["overall"] == pytest.approx(60.0)
    assert row["groups"] == {"field": {"x": pytest.approx(75.0), "y": pytest.approx(30.0)}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"p.jsonl": '{"sentence_good": "a"}\n'}, r"p.jsonl:1: no key 'sentence_bad' \(found: sentence_good\)"),
        ({"p.jsonl": line() + "{nonsense\n"}, "p.jsonl:2: not valid JSON"),
        ({"p.jsonl": line() + "[1]\n"}, "p.jsonl:2: not a JSON object"),
        ({"p.jsonl": line(good=" ")}, "p.jsonl:1: 'sentence_good' must be a sentence, got"),
        ({"p.jsonl": "\n"}, "p.jsonl: empty"),
        ({"p.jsonl": line(UID="a") + line(UID="b")}, "p.jsonl:2: UID is 'b', but 'a' in earlier lines"),
        ({"p.jsonl": line(UID="a"), "q.jsonl": line(UID="a")}, "paradigm 'a' is already in .*p.jsonl"),
        ({"p.txt": "text"}, "no .jsonl, .jsonl.zst, .jsonl.gz file in this folder"),
        ({"p.jsonl.gz": "not compressed"}, "p.jsonl.gz: cannot be read"),
    ],
)
def test_bad_files_are_named_with_the_line(files: dict[str, str], message: str, tmp_path: Path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CramError, match=message) as raised:
        read_parts(MinimalPairsConfig(), tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(CramError, match="nowhere: no such folder"):
        read_parts(MinimalPairsConfig(), tmp_path / "nowhere")
