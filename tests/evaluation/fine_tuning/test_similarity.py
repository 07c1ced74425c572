"""Embeddings: the contrastive loss, what it learns, and scores of similarity and retrieval by their definitions."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cram_composer.config.schema.evaluation import SimilarityConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.encode import EncodedRows, collate, encode_texts
from cram_composer.evaluation.fine_tuning.heads import PairEmbedder
from cram_composer.evaluation.fine_tuning.jobs import plan_jobs, run_job
from cram_composer.evaluation.fine_tuning.pairs import pair_scores
from cram_composer.evaluation.model_source import find_model
from cram_composer.evaluation.tasks.examples import Split
from cram_composer.evaluation.tasks.similarity import SIMILARITY
from cram_composer.evaluation.tasks.task import Example
from tests.evaluation.tiny_folders import save, wordpiece, wrapped

_WORDS = ["river", "king", "sea", "flow", "was", "kind", "who", "that"]
# Texts are similar if the second has the successor of the first one's word, which only training can tell.
_SUCCESSORS = dict(zip(_WORDS, [*_WORDS[3:], *_WORDS[:3]], strict=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return STS-B and MRPC, with pairs of texts on successive words and pairs on other words."""
    folder = tmp_path_factory.mktemp("data")
    for name, similar, other in (("stsb", 4.5, 1.0), ("mrpc", 1, 0)):
        for split, rows in (("train", 192), ("validation", 64)):
            draw = random.Random(rows)
            lines = []
            for at in range(rows):
                word = _WORDS[at % 8]
                wrong = draw.choice([one for one in _WORDS if one != _SUCCESSORS[word]])
                ending = draw.choice(["", "and", "there", "into there", "and the"])
                second = f"{wrong if at % 4 == 3 else _SUCCESSORS[word]} {ending}"
                label = other if at % 4 == 3 else similar
                lines.append(json.dumps({"sentence1": f"the {word} no", "sentence2": second, "label": label}))
            path = folder / name / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(lines))
    return folder


def scores(model: Path, data: Path, task: str, **changes) -> dict[str, float]:
    settings = {"epochs": 20, "batch_size": 16, "lr": 3e-3, "seeds": 1, "dropout": 0.0, "tasks": [task], **changes}
    (job,) = plan_jobs([find_model(str(model))], SimilarityConfig.model_validate(settings), data, "fp32", data)
    (result,) = run_job(job, torch.device("cpu"))
    return result.scores["validation"]


@pytest.mark.parametrize("kind", ["crambert", "bert"])
def test_similar_texts_are_found_after_training_only(kind: str, data: Path, tmp_path: Path):
    model = save(tmp_path / "model", kind)
    trained = scores(model, data, "mrpc")
    assert trained["ndcg@10"] > 90.0 and trained["mrr@10"] > 90.0
    assert scores(model, data, "mrpc", epochs=0)["mrr@10"] < 60.0
    degrees = scores(model, data, "stsb")
    assert degrees["cosine_spearman"] > 60.0  # ties of labels leave less than 100
    assert scores(model, data, "stsb", epochs=0)["cosine_spearman"] < 30.0


def test_a_train_split_without_similar_pairs_is_one_line(data: Path, tmp_path: Path):
    rows = (data / "mrpc" / "train.jsonl").read_text().replace('"label": 1', '"label": 0')
    (tmp_path / "mrpc").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "mrpc" / f"{split}.jsonl").write_text(rows)
    with pytest.raises(CramError, match="^train: no pair has a label >= 1, so there is nothing to learn"):
        scores(save(tmp_path / "model"), tmp_path, "mrpc")


class Rows(torch.nn.Module):
    """An encoder whose hidden states are the ids."""

    config = None

    def forward(self, input_ids, attention_mask):
        hidden = input_ids[..., None] * torch.tensor([1.0, 0.5, 0.1]).cos() ** input_ids[..., None]
        return type("Output", (), {"last_hidden_state": hidden})


def test_the_loss_finds_the_second_text_among_those_of_other_pairs():
    split = Split("train", [Example((a, b), 1) for a, b in (("the", "a"), ("sea", "king"), ("the", "who"))], 3, 3)
    rows = encode_texts(split, wrapped(wordpiece()), 16, token_types=False)
    assert (rows.size, rows.groups.tolist()) == (3, [[0, 1], [2, 3], [0, 4]])
    batch = collate(rows, torch.tensor([2, 0, 1]), pad=0)
    assert batch["labels"].tolist() == [[0, 4], [0, 1], [2, 3]]
    output = PairEmbedder(Rows(), temperature=0.1)(**batch)
    embeddings = torch.stack(
        [
            F.normalize(Rows()(ids[None, mask.bool()], None).last_hidden_state[0].mean(0), dim=0)
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
    )
    torch.testing.assert_close(output.logits, embeddings.view(3, 2, 3))
    expected = []
    for pair, others in ((0, [2]), (1, [2]), (2, [0, 1])):  # the first two have one first text
        cosines = [float(embeddings[2 * pair] @ embeddings[2 * one + 1]) / 0.1 for one in (pair, *others)]
        expected.append(math.log(sum(map(math.exp, cosines))) - cosines[0])
    assert float(output.loss) == pytest.approx(sum(expected) / 3, rel=1e-5)


def embedded(groups: list[list[int]], labels: list, vectors: list[list[float]]) -> tuple[torch.Tensor, EncodedRows]:
    numbers, none = torch.tensor(groups), torch.zeros(0)
    rows = EncodedRows(none, None, none, torch.tensor(labels), numbers, none, texts=2)
    return F.normalize(torch.tensor(vectors), dim=-1)[numbers], rows


def test_retrieval_scores_equal_their_definitions():
    at = [[math.cos(angle), math.sin(angle)] for angle in (0.0, 0.3, 0.1, 0.2, 0.05)]
    # Query 0 has the similar texts 1 and 2; candidates by cosine: 4, 2, 3, 1. Query 1 has text 3, ranked first.
    groups = [[0, 1], [0, 2], [0, 3], [0, 4], [1, 3], [1, 1]]
    found = pair_scores(SIMILARITY["mrpc"], *embedded(groups, [1, 1, 0, 0, 1, 1], at))
    ideal = 1 + 1 / math.log2(3)
    assert found == {
        "ndcg@10": pytest.approx(100 * ((1 / math.log2(3) + 1 / math.log2(5)) / ideal + 1) / 2),
        "mrr@10": pytest.approx(100 * (1 / 2 + 1) / 2),
    }
    assert pair_scores(SIMILARITY["mrpc"], *embedded(groups, [0] * 6, at)) == {"ndcg@10": 0.0, "mrr@10": 0.0}


def test_ranks_after_the_tenth_do_not_count():
    at = [[math.cos(0.1 * number), math.sin(0.1 * number)] for number in range(13)]
    groups = [[0, number] for number in range(1, 13)]
    found = pair_scores(SIMILARITY["qqp"], *embedded(groups, [0] * 10 + [1, 0], at))
    assert found == {"ndcg@10": 0.0, "mrr@10": 0.0}


def test_degrees_are_compared_by_rank():
    at = [[1.0, 0.0], [1.0, 0.1], [1.0, 1.0], [0.0, 1.0]]
    groups = [[0, 1], [0, 2], [0, 3]]
    assert pair_scores(SIMILARITY["stsb"], *embedded(groups, [5.0, 1.0, 0.0], at)) == {
        "cosine_spearman": pytest.approx(100.0)
    }
    assert pair_scores(SIMILARITY["stsb"], *embedded([[0, 1]] * 3, [5.0, 1.0, 0.0], at)) == {"cosine_spearman": 0.0}
