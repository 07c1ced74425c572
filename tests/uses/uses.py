"""Uses of an exported model, each with a difference that should be nearly zero.

Runs as `python uses.py FOLDER REFERENCE [USE ...]` with any Python that has transformers, without cram_composer, and
prints a JSON object: by use, the largest difference, or the reason why it fails.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

TEXTS = ["the river flows into the sea.", "a king was born."]
PAIRS = [(TEXTS[0], "the sea"), (TEXTS[1], "a king")]


class Absent(Exception):
    """This version of a library does not know models of this kind."""


class Export:
    """An exported folder, or one saved by transformers; its own code runs if it has any."""

    def __init__(self, folder: str, reference: str = "") -> None:
        self.folder = folder
        self.reference = reference
        self.trust = {"trust_remote_code": True} if list(Path(folder).glob("*.py")) else {}

    def load(self, auto: str, **settings):
        """Load it with one of transformers' Auto classes, by name."""
        import transformers

        try:
            return getattr(transformers, auto).from_pretrained(self.folder, **self.trust, **settings).eval()
        except ValueError as error:
            if "Unrecognized configuration class" in str(error):
                raise Absent(f"transformers has no {auto} of this kind") from error
            raise

    def tokenizer(self):
        """Load the tokenizer."""
        import transformers

        return transformers.AutoTokenizer.from_pretrained(self.folder, **self.trust)

    def batch(self):
        """Tokenize two texts of different lengths."""
        found = self.tokenizer()(TEXTS, padding=True, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}


def fill_mask(export: Export) -> float:
    """Compare the scores of the pipeline with the trained model's own logits."""
    import transformers

    given = torch.load(export.reference)
    fill = transformers.pipeline("fill-mask", model=export.folder, **export.trust)
    with torch.inference_mode():
        logits = fill.model(**given["inputs"]).logits
    difference = _difference(logits[given["inputs"]["attention_mask"].bool()], given["logits"])
    wanted = given["filled"].softmax(dim=-1)
    answers = fill(given["sentence"])
    return max([difference, *(abs(answer["score"] - float(wanted[answer["token"]])) for answer in answers)])


def other_pipelines(export: Export) -> float:
    """Compare the features of the pipeline with the encoder's; load those with untrained heads."""
    import transformers

    def load(task: str):
        return transformers.pipeline(task, model=export.folder, **export.trust)

    assert all(0 < answer["score"] <= 1 for answer in load("text-classification")(TEXTS))
    assert len(load("token-classification")(TEXTS[1])) == len(export.tokenizer().tokenize(TEXTS[1]))
    if "question-answering" in transformers.pipelines.PIPELINE_REGISTRY.get_supported_tasks():  # not in transformers 5
        assert load("question-answering")(question="a king", context=TEXTS[0])["answer"] in TEXTS[0]
    with torch.inference_mode():
        wanted = export.load("AutoModel")(**export.tokenizer()(TEXTS[1], return_tensors="pt")).last_hidden_state
    return _difference(load("feature-extraction")(TEXTS[1], return_tensors=True), wanted)


def pretrain_on(export: Export) -> float:
    """Continue pretraining by two steps of the Trainer; compare the model with the one saved and loaded again."""
    import transformers

    collator = transformers.DataCollatorForLanguageModeling(export.tokenizer(), mlm_probability=0.5)
    return _with_trainer(export, "AutoModelForMaskedLM", [export.tokenizer()(text) for text in TEXTS], collator)


def label_words_with_trainer(export: Export) -> float:
    """Train a classifier of tokens by two steps of the Trainer; compare it with the one saved and loaded again."""
    import transformers

    rows = [export.tokenizer()(text) for text in TEXTS]
    rows = [{**row, "labels": [token % 2 for token in row["input_ids"]]} for row in rows]
    collator = transformers.DataCollatorForTokenClassification(export.tokenizer())
    return _with_trainer(export, "AutoModelForTokenClassification", rows, collator)


def _with_trainer(export: Export, auto: str, rows: list, collator) -> float:
    import transformers

    model = export.load(auto)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            f"{folder}/checkpoints",
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=0.01,
            gradient_checkpointing=True,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model, arguments, train_dataset=rows, data_collator=collator, processing_class=collator.tokenizer
        )
        with contextlib.redirect_stdout(sys.stderr):
            assert trainer.train().training_loss > 0
        still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
        # The first layer may add nothing, in place of a norm; it then has no gradient.
        assert all(name.startswith("model.layers.0.") for name in still), f"not trained: {still}"
        trainer.save_model(f"{folder}/v1.5")
        saved = Export(f"{folder}/v1.5")
        assert saved.tokenizer()(TEXTS)["input_ids"] == export.tokenizer()(TEXTS)["input_ids"]
        return _difference_of(model, saved.load(auto), export.batch())


def classify(export: Export) -> float:
    """Train a classifier for three steps; compare it with the one saved and loaded again."""
    return _fine_tune(export, "AutoModelForSequenceClassification", export.batch(), labels=torch.tensor([0, 1]))


def label_words(export: Export) -> float:
    """Train a classifier of tokens for three steps; compare it with the one saved and loaded again."""
    batch = export.batch()
    return _fine_tune(export, "AutoModelForTokenClassification", batch, labels=batch["input_ids"] % 2)


def answer_questions(export: Export) -> float:
    """Train a finder of answers for three steps; compare it with the one saved and loaded again."""
    spans = {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([2, 3])}
    return _fine_tune(export, "AutoModelForQuestionAnswering", export.batch(), **spans)


def choose(export: Export) -> float:
    """Train a chooser between two texts for three steps; compare it with the one saved and loaded again."""
    choices = {name: tensor.unsqueeze(0) for name, tensor in export.batch().items()}
    return _fine_tune(export, "AutoModelForMultipleChoice", choices, labels=torch.tensor([1]))


def _fine_tune(export: Export, auto: str, batch: dict[str, torch.Tensor], **labels: torch.Tensor) -> float:
    # A multiple choice has one score per text.
    model = export.load(auto, **({} if "MultipleChoice" in auto else {"num_labels": 2})).train()
    _train(model, lambda: model(**batch, **labels).loss)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return _difference_of(model, Export(folder).load(auto), batch)


def _difference_of(model: torch.nn.Module, again: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    with torch.inference_mode():
        return _difference(model.eval()(**batch)[0], again(**batch)[0])


def _train(model: torch.nn.Module, loss_of: Callable[[], torch.Tensor]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0], f"the loss does not fall: {losses}"


def embed(export: Export) -> float:
    """Compare the hidden states of a text alone with those in a padded batch."""
    model, batch = export.load("AutoModel"), export.batch()
    length = int(batch["attention_mask"][1].sum())
    with torch.inference_mode():
        padded = model(**batch).last_hidden_state[1, :length]
        alone = model(input_ids=batch["input_ids"][1:, :length]).last_hidden_state[0]
    return _difference(padded, alone)


def sentence_transformers(export: Export) -> float:
    """Train sentence embeddings for three steps; compare them with those of the encoder, pooled by hand."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(export.folder, device="cpu", **export.trust)
    batch = export.batch()
    with torch.inference_mode():
        hidden = export.load("AutoModel")(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    difference = _difference(torch.tensor(model.encode(TEXTS)), pooled)
    ranking = MultipleNegativesRankingLoss(model)
    columns = [model.tokenize(list(column)) for column in zip(*PAIRS, strict=True)]
    _train(model, lambda: ranking(columns, torch.arange(len(PAIRS))))
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        again = SentenceTransformer(folder, device="cpu", **export.trust)
        return max(difference, _difference(*(torch.tensor(m.encode(TEXTS)) for m in (model, again))))


def cross_encoder(export: Export) -> float:
    """Train a scorer of pairs for three steps; compare it with the one saved and loaded again."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(export.folder, num_labels=1, device="cpu", **export.trust)
    columns = [list(column) for column in zip(*PAIRS, strict=True)]
    inputs = model.tokenizer(*columns, padding=True, return_tensors="pt")
    labels = torch.tensor([[0.0], [1.0]])
    loss = torch.nn.BCEWithLogitsLoss()
    _train(model.model.train(), lambda: loss(model.model(**inputs).logits, labels))
    model.model.eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = CrossEncoder(folder, device="cpu", **export.trust)
        return _difference(*(torch.tensor(m.predict(PAIRS)) for m in (model, again)))


def onnx(export: Export) -> float:
    """Export with free numbers of rows and tokens; compare onnxruntime with torch at other numbers."""
    import onnxruntime

    model, batch = export.load("AutoModelForMaskedLM"), export.batch()
    rows, tokens = torch.export.Dim("rows", max=4096), torch.export.Dim("tokens", max=4096)  # torch 2.7 needs max
    names = list(batch)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = f"{folder}/model.onnx"
        torch.onnx.export(
            model,
            tuple(batch.values()),
            file,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=({0: rows, 1: tokens}, {0: rows, 1: tokens}),
            dynamo=True,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(file)
        differences = []
        for shape in ((2, batch["input_ids"].shape[1]), (3, 7), (1, 16)):
            ids = torch.randint(5, model.config.vocab_size, shape)
            mask = torch.ones_like(ids)
            mask[-1, shape[1] - 2 :] = 0
            found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
            wanted = model(input_ids=ids, attention_mask=mask).logits
            differences.append(_difference(torch.tensor(found)[mask.bool()], wanted[mask.bool()]))
    return max(differences)


def optimum(export: Export) -> float:
    """Export with optimum's own command; compare its model with torch's."""
    from optimum.onnxruntime import ORTModelForMaskedLM

    batch = export.batch()
    try:
        model = ORTModelForMaskedLM.from_pretrained(export.folder, export=True, **export.trust)
    except ValueError as error:
        if "unsupported architecture" in str(error):
            raise Absent("optimum does not know this architecture") from error
        raise
    with torch.inference_mode():
        wanted = export.load("AutoModelForMaskedLM")(**batch).logits
        kept = batch["attention_mask"].bool()
        return _difference(model(**batch).logits[kept], wanted[kept])


def compile_(export: Export) -> float:
    """Compare the compiled model with the eager one."""
    model, batch = export.load("AutoModelForMaskedLM"), export.batch()
    with torch.inference_mode():
        return _difference(torch.compile(model, dynamic=True)(**batch).logits, model(**batch).logits)


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max())


USES: dict[str, Callable[[Export], float]] = {
    "fill-mask pipeline": fill_mask,
    "other pipelines": other_pipelines,
    "continued pretraining (Trainer)": pretrain_on,
    "text classification": classify,
    "token classification": label_words,
    "token classification (Trainer)": label_words_with_trainer,
    "question answering": answer_questions,
    "multiple choice": choose,
    "embeddings": embed,
    "sentence-transformers": sentence_transformers,
    "CrossEncoder": cross_encoder,
    "ONNX (torch.onnx)": onnx,
    "ONNX (optimum)": optimum,
    "torch.compile": compile_,
}
_PACKAGES = {
    "sentence-transformers": "sentence-transformers",
    "CrossEncoder": "sentence-transformers",
    "ONNX (torch.onnx)": "onnxruntime",
    "ONNX (optimum)": "optimum-onnx",
}


def _outcome(use: str, export: Export) -> float | str:
    package = _PACKAGES.get(use)
    try:
        importlib.metadata.version(package or "torch")
    except importlib.metadata.PackageNotFoundError:
        return f"not tested: {package} is not installed"
    torch.manual_seed(0)
    try:
        return USES[use](export)
    except Absent as error:
        return str(error)
    except Exception as error:
        return f"no: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def main() -> None:
    """Print the outcome of the uses named in the arguments, or of all."""
    folder, reference, *uses = sys.argv[1:]
    found = {use: _outcome(use, Export(folder, reference)) for use in uses or USES}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    print(json.dumps({"versions": versions, "uses": found}))


if __name__ == "__main__":
    main()
