"""Export of a run's model as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from cram_composer.algorithms.averaging.weight_average import WeightAverage, saved_average
from cram_composer.config.schema.run import RunConfig
from cram_composer.data.loading.prepare import PreparedDataset
from cram_composer.data.pipeline.tokenizer.tokenizer import MODEL_MAX_LENGTH
from cram_composer.errors import CramError
from cram_composer.models.card import model_card
from cram_composer.models.crambert.encoder import CramBertPreTrainedModel
from cram_composer.models.export import export_model, exported_form, fill_masks, verify_export
from cram_composer.models.factory import build_model
from cram_composer.models.replaced_tokens import ReplacedTokenDetector
from cram_composer.runs.checkpoints import damaged_checkpoints, newest_checkpoint
from cram_composer.runs.folder import FINISHED, RECORD, RunFolder, read_evaluations
from cram_composer.storage.files import read_json
from cram_composer.train.checkpointing import load_state
from cram_composer.train.session import Session


def export_run(path: Path, destination: Path | None) -> Path:
    """Export a run's newest checkpoint, with the averaged weights if it has any.

    Args:
        path: a run folder.
        destination: the folder to write; None for `export` in the run folder.

    Raises:
        CramError: no run folder, or no usable checkpoint.
    """
    record = RunFolder(path).read_record()
    if record is None:
        raise CramError(f"{path}: not a run folder, because it has no {RECORD}; give RUNS_DIR/RUN_NAME")
    network = load_network(path, record)
    evaluations = read_evaluations(path) if record["status"] in FINISHED else {}  # else of an earlier step
    return _write_export(
        network, record, record["data"], path / "tokenizer", destination or path / "export", evaluations
    )


def export_session(session: Session) -> list[dict[str, Any]]:
    """Export the trained model of a run; return its predictions for `export.sentences`."""
    path, tokenizer = session.folder.path, session.data.tokenizer
    record = read_json(path / RECORD)
    averages = []
    if session.setup.strategy.is_replicated:
        network = session.setup.model.model
        algorithms = session.trainer.state.algorithms
        averages = [algorithm for algorithm in algorithms if isinstance(algorithm, WeightAverage)]
    else:
        network = load_network(path, record)  # the weights are sharded; the checkpoint is complete
    for average in averages:
        average.swap_in(session.trainer.state.model)
    _write_export(network, record, session.data.manifest, tokenizer, path / "export", evaluations={})
    masked_lm = network.masked_lm() if isinstance(network, ReplacedTokenDetector) else network
    predictions = _fill_masks(masked_lm, tokenizer, session.config.export.sentences)
    for average in averages:
        average.swap_out(session.trainer.state.model)
    return predictions


def _write_export(
    network: PreTrainedModel,
    record: dict[str, Any],
    manifest: Mapping[str, Any],
    tokenizer: Path,
    destination: Path,
    evaluations: Mapping[str, Any],
) -> Path:
    form = exported_form(network)
    card = model_card(record, manifest, isinstance(form, CramBertPreTrainedModel), evaluations)
    identity = {"run_name": record["run_name"], "config_hash": record["config_hash"]}
    generator = None
    if isinstance(network, ReplacedTokenDetector) and network.head is None:
        generator = exported_form(network.trained_generator())
    target = export_model(form, tokenizer, destination, card, identity, generator)
    verify_export(target, network)
    return target


def check_sentences(sentences: list[str], data: PreparedDataset, max_position_embeddings: int) -> None:
    """Check that the model can fill in a mask of every sentence of `export.sentences`, before it is trained.

    Raises:
        CramError: a sentence has no mask, or none within the length of the model or the tokenizer.
    """
    backend = Tokenizer.from_file(str(data.tokenizer / "tokenizer.json"))
    backend.no_truncation()
    mask_id = data.manifest["special_tokens"]["mask"]
    mask = str(backend.id_to_token(mask_id))
    limit = min(MODEL_MAX_LENGTH, max_position_embeddings)
    for sentence in sentences:
        ids = backend.encode(sentence.replace("[MASK]", mask)).ids
        if mask_id not in ids:
            raise CramError(f"export.sentences: '{sentence}' has no [MASK]; add one or remove the sentence")
        place = ids.index(mask_id) + 1
        if place > (limit if len(ids) <= limit else limit - 1):  # a truncated sentence ends with [SEP]
            raise CramError(
                f"export.sentences: '{sentence}' has its [MASK] at token {place}, beyond the {limit} tokens of the "
                "model; shorten it or remove the sentence"
            )


def _fill_masks(network: PreTrainedModel, tokenizer_dir: Path, sentences: list[str]) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    predictions = fill_masks(network, tokenizer, [text.replace("[MASK]", tokenizer.mask_token) for text in sentences])
    return [{"sentence": s, "predictions": p} for s, p in zip(sentences, predictions, strict=True)]


def load_network(path: Path, record: dict[str, Any]) -> PreTrainedModel:
    """Load the model of a run's newest checkpoint, with the averaged weights if it has any."""
    saved = newest_checkpoint(path / "checkpoints")
    if saved is None:
        problems = "; ".join(damaged_checkpoints(path / "checkpoints"))
        detail = f" ({problems})" if problems else ""
        raise CramError(f"{path}: has no intact checkpoint to export{detail}; resume the run first")
    config = RunConfig.model_validate({key: record["config"][key] for key in ("model", "objective")})
    manifest = record["data"]
    network = build_model(config.model, manifest["vocab_size"], manifest["special_tokens"], config.objective)
    state = load_state(saved.path)
    averages = saved_average(state["algorithms"])
    weights = averages or state["model"]
    prefix = "model."
    network.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in weights.items()}, strict=averages is None
    )
    return network
