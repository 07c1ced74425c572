"""Fine-tuning learns, follows the protocol in order and rates, and computes the right metrics."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from cram_composer.config import compose
from cram_composer.config.paths import shared_dir
from cram_composer.config.schema.evaluation import ProtocolConfig, TaskSettingsConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.encode import EncodedRows, collate, encode, scoring_batches, training_batches
from cram_composer.evaluation.fine_tuning.fine_tune import fine_tune, lr_factor, task_settings
from cram_composer.evaluation.fine_tuning.metrics import compute_metrics
from cram_composer.evaluation.model_source import find_model
from cram_composer.evaluation.tasks.examples import Split
from cram_composer.evaluation.tasks.glue import GLUE
from cram_composer.evaluation.tasks.superglue import SUPERGLUE
from cram_composer.evaluation.tasks.task import Example
from tests.models.tiny_models import save_tokenizer, tiny_model


def settings(**changes) -> ProtocolConfig:
    return ProtocolConfig(**{"epochs": 12, "batch_size": 8, "lr": 3e-3, "eval_batch_size": 16, **changes})


def made(
    rows: list[list[int]],
    labels: list,
    types: list[list[int]] | None = None,
    groups: list[int] | None = None,
    credits: list[float] | None = None,
) -> EncodedRows:
    """Build rows like `encode`."""
    return EncodedRows(
        torch.tensor([*itertools.chain(*rows)], dtype=torch.int32),
        None if types is None else torch.tensor([*itertools.chain(*types)], dtype=torch.uint8),
        torch.tensor([0, *itertools.accumulate(map(len, rows))]),
        torch.tensor(labels),
        torch.tensor(groups or [0] * len(rows)),
        torch.tensor(credits or [0.0] * len(rows)),
    )


def encoded(count: int, regression: bool = False) -> EncodedRows:
    """Return rows of 3 to 12 tokens, one of which determines the label."""
    generator = torch.Generator().manual_seed(0)
    rows, labels = [], []
    for number in range(count):
        length = int(torch.randint(1, 10, (1,), generator=generator))
        rows.append([2, 10 + number % 2, *torch.randint(20, 40, (length,), generator=generator).tolist(), 3])
        labels.append(number % 2)
    return made(rows, [float(label) for label in labels] if regression else labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export with a tokenizer."""
    made = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(made)
    return save_tokenizer(made)


@pytest.mark.parametrize("name", ["sst2", "cola", "stsb"])
def test_learnable_tasks_are_learnt(name: str, folder: Path):
    task = GLUE[name]
    rows = {"train": encoded(96, task.is_regression), "validation": encoded(32, task.is_regression)}
    torch.manual_seed(1)
    model = find_model(str(folder)).load_classifier(task.num_labels, dropout=0.0)
    outcome = fine_tune(model, task, rows, settings(), 1, torch.device("cpu"), "fp32")
    assert outcome.steps == 144
    assert outcome.scores["validation"].keys() == set(task.metrics)
    assert min(outcome.scores["validation"].values()) > 80.0


def test_seed_determines_the_result(folder: Path):
    def run(seed: int) -> float:
        torch.manual_seed(seed)
        model = find_model(str(folder)).load_classifier(2, dropout=0.1)
        rows = {"train": encoded(32), "validation": encoded(8)}
        return fine_tune(model, GLUE["sst2"], rows, settings(epochs=1), seed, torch.device("cpu"), "fp32").train_loss

    assert run(1) == run(1) != run(2)


def test_non_finite_loss_is_one_line(folder: Path):
    model = find_model(str(folder)).load_classifier(2, dropout=0.0)
    with torch.no_grad():
        model.classifier.out.weight.fill_(math.nan)
    rows = {"train": encoded(32), "validation": encoded(8)}
    with pytest.raises(CramError, match=r"^sst2, seed 3: the loss is nan; lower lr"):
        fine_tune(model, GLUE["sst2"], rows, settings(), 3, torch.device("cpu"), "fp32")


def test_every_row_is_in_one_batch_per_epoch_with_rows_of_similar_length():
    rows = encoded(1000)
    batches = training_batches(rows, 8, torch.Generator().manual_seed(0))
    assert torch.cat(batches).sort().values.tolist() == list(range(1000))
    lengths = [rows.lengths[batch].tolist() for batch in batches]
    assert max(max(batch) - min(batch) for batch in lengths) <= 2
    firsts = [batch[0] for batch in lengths]
    assert firsts != sorted(firsts)
    other = training_batches(rows, 8, torch.Generator().manual_seed(1))
    assert torch.cat(other).tolist() != torch.cat(batches).tolist()
    assert torch.cat(scoring_batches(rows, 64)).sort().values.tolist() == list(range(1000))


def test_batches_are_padded_to_their_longest_row():
    rows = made([[2, 5, 3], [2, *range(20, 30), 3]], [0, 1], types=[[0, 0, 1], [1] * 12])
    batch = collate(rows, torch.tensor([1, 0]), pad=9)
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"][1].tolist() == [2, 5, 3] + [9] * 13
    assert batch["attention_mask"].sum(1).tolist() == [12, 3]
    assert batch["token_type_ids"][1].tolist() == [0, 0, 1] + [0] * 13
    assert batch["labels"].tolist() == [1, 0]


def test_pairs_are_encoded_and_truncated(folder: Path):
    tokenizer = find_model(str(folder)).load_tokenizer()
    pairs = [Example(("the river", "the sea . . . . . . . . . ."), 0), Example(("a king", "the river"), 1)]
    rows = encode(Split("train", pairs, 2, 2), tokenizer, 8, token_types=True)
    assert rows.lengths.tolist() == [8, 7]
    assert rows.types is not None and rows.types[8:].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert rows.ids[8:].tolist() == tokenizer("a king", "the river")["input_ids"]
    assert rows.labels.dtype == torch.int64
    number = encode(Split("train", [Example(("the",), 2.5)], 1, 1), tokenizer, 8, token_types=False)
    assert number.labels.tolist() == [2.5] and number.types is None


def test_many_rows_are_encoded_as_few_are(folder: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = find_model(str(folder)).load_tokenizer()
    texts = [Example((" ".join(["the", "river", "king"][: 1 + at % 3]),), at % 2, at // 2) for at in range(7)]
    whole = encode(Split("train", texts, 7, 7), tokenizer, 8, token_types=True)
    monkeypatch.setattr("cram_composer.evaluation.fine_tuning.encode._ROWS_PER_CALL", 3)
    parts = encode(Split("train", texts, 7, 7), tokenizer, 8, token_types=True)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
    assert whole.groups.tolist() == [0, 0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_rates_rise_to_the_peak_and_fall_to_zero(schedule: str):
    rates = [lr_factor(settings(schedule=schedule, warmup=0.1), step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and 0.0 < rates[0] < rates[9] < 1.0
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(1.0 if schedule == "constant" else 0.5)
    assert rates[-1] == 1.0 if schedule == "constant" else rates[-1] < 0.02
    assert lr_factor(settings(schedule=schedule, warmup=0.0), 0, 1) == 1.0


def test_task_with_its_own_settings():
    protocol = settings(overrides={"rte": TaskSettingsConfig(lr=1e-5, epochs=3)})
    own = task_settings(protocol, "rte")
    assert (own.lr, own.epochs, own.batch_size) == (1e-5, 3, 8)
    assert (task_settings(protocol, "cola").lr, protocol.lr) == (3e-3, 3e-3)


def test_protocol_file_lists_all_settings():
    file = shared_dir() / "yamls" / "eval" / "glue.yaml"
    composed = compose(ProtocolConfig, file, [])
    assert composed.config == ProtocolConfig()
    assert {key for key, source in composed.provenance.items() if source == "default"} <= {
        "kind",
        "overrides",
        "eval_batch_size",
        "precision",
    }


def scored(task: str, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    return compute_metrics(GLUE[task], logits, made([[2]] * len(labels), labels.tolist()))


def test_metrics_equal_their_definitions():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0], [1.0, 0.0]])  # predicts 0 1 0 1 0
    labels = torch.tensor([0, 1, 1, 1, 1])
    assert scored("sst2", logits, labels) == {"accuracy": pytest.approx(60.0)}
    assert scored("mrpc", logits, labels) == {"f1": pytest.approx(200 / 3), "accuracy": pytest.approx(60.0)}
    assert scored("cola", logits, labels) == {"matthews": pytest.approx(100 * 2 / math.sqrt(2 * 4 * 1 * 3))}
    numbers = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    found = scored("stsb", numbers, torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert found == {"pearson": pytest.approx(98.27, abs=0.01), "spearman": pytest.approx(100.0)}
    assert scored("stsb", torch.ones(4, 1), torch.arange(4.0)) == {"pearson": 0.0, "spearman": 0.0}
    assert scored("mnli", torch.eye(3), torch.tensor([0, 1, 1])) == {"accuracy": pytest.approx(200 / 3)}


def test_group_metrics_equal_their_definitions():
    """Three questions with two or three answers; the log-odds of being right are the second minus the first logit."""
    odds = torch.tensor([0.5, -1.0, -0.2, -0.1, 2.0, 1.0, -3.0])
    rows = made(
        [[2]] * 7, [1, 0, 1, 0, 0, 1, 0], groups=[0, 0, 1, 1, 2, 2, 2], credits=[1.0, 0.0, 1.0, 0.5, 0.25, 1.0, 0.0]
    )
    logits = torch.stack([torch.zeros(7), odds], dim=1)
    # right: both of the first question (1 0), one of the second (0 0 for 1 0), two of the third (1 1 0 for 0 1 0)
    assert compute_metrics(SUPERGLUE["multirc"], logits, rows)["exact_match"] == pytest.approx(100 / 3)
    assert compute_metrics(SUPERGLUE["multirc"], logits, rows)["f1"] == pytest.approx(100 * 2 * 2 / (3 + 3))
    # chosen: answers 0, 3 and 4, of which the first alone is right
    assert compute_metrics(SUPERGLUE["record"], logits, rows) == {
        "choice_credit": pytest.approx(100 * (1.0 + 0.5 + 0.25) / 3),
        "choice_accuracy": pytest.approx(100 / 3),
    }
    assert compute_metrics(SUPERGLUE["copa"], logits, rows) == {"choice_accuracy": pytest.approx(100 / 3)}
    # alike: the second question alone
    assert compute_metrics(SUPERGLUE["axg"], logits, rows)["parity"] == pytest.approx(100 / 3)
    three = made([[2]] * 3, [0, 1, 1])
    assert compute_metrics(SUPERGLUE["cb"], torch.eye(3), three)["macro_f1"] == pytest.approx(
        100 * (1.0 + 2 / 3 + 0.0) / 3
    )


def test_runs_exports_and_folders_are_found(folder: Path, tmp_path: Path):
    assert len(find_model(str(folder)).hash) == 16
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(CramError, match="has no export yet; run: cram export"):
        find_model(str(tmp_path))
    (tmp_path / "export").symlink_to(folder)
    assert find_model(str(tmp_path)).hash == find_model(str(folder)).hash
    (tmp_path / "empty").mkdir()
    with pytest.raises(CramError, match="not a run folder or a model"):
        find_model(str(tmp_path / "empty"))
    with pytest.raises(CramError, match="no such folder"):
        find_model(str(tmp_path / "nowhere"))
    assert find_model("bert-base-uncased").hash == "hub:bert-base-uncased"
