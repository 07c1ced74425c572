"""Weights to start from instead of random ones: those of a run, an export or a Hugging Face folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from cram_composer.config.paths import expand
from cram_composer.data.loading.prepare import PreparedDataset
from cram_composer.errors import CramError
from cram_composer.evaluation.model_source import find_model
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.native import from_native
from cram_composer.models.replaced_tokens import ReplacedTokenDetector
from cram_composer.runs.checkpoints import newest_checkpoint
from cram_composer.runs.folder import RECORD, read_record
from cram_composer.train.export import load_network

_TOLERANCE = 1e-3  # of a logit; an equivalent class sums in another order


def load_initial_weights(network: PreTrainedModel, source: str, data: PreparedDataset) -> dict[str, Any]:
    """Load the weights of `source` into `network`.

    Args:
        network: the model of the run, in fp32 on the CPU.
        source: a run folder, an export or a folder of transformers.
        data: the data set of the run. With another tokenizer than that of `source`, rows of the embedding are
            matched by the text of the tokens, and tokens without a match keep their random rows.

    Returns:
        A description of `source` for record.json, with `tokens_matched` if the tokenizers differ.

    Raises:
        CramError: no such folder, no token in common, or weights of another architecture.
    """
    folder = expand(source)
    is_run = (folder / RECORD).is_file()
    if not is_run and not (folder / "config.json").is_file():
        raise CramError(
            f"init_from: {folder}: neither a run folder nor a model: it has neither {RECORD} nor config.json; give the "
            "folder of a run, an export or a Hugging Face model"
        )
    record = read_record(folder) if is_run else None
    matched = _match_tokens(folder, record, data)
    if record is not None and newest_checkpoint(folder / "checkpoints") is not None:
        found = load_network(folder, record).eval()
        if isinstance(found, ReplacedTokenDetector) and not isinstance(network, ReplacedTokenDetector):
            if found.head is None:
                raise CramError(
                    f"init_from: {folder}: its encoder was trained by replaced-token detection and has no masked-LM "
                    "head; give a run with objective.corrective_masks"
                )
            found = found.trained_encoder()
    else:
        found = find_model(str(folder)).load_masked_lm(seed=0)
    found = found.float()
    if isinstance(network, ReplacedTokenDetector):
        _check_detection(network, found, folder, same_tokenizer=matched is None)
    if matched is None:
        _copy_weights(network, found, folder)
        return _describe(folder, record)
    ours, _ = matched
    total = data.manifest["vocab_size"]
    print(
        f"init_from: {len(ours):,} of {total:,} tokens matched by text; the others start from random rows", flush=True
    )
    _copy_weights(network, _with_vocabulary(found, network, matched), folder)
    return _describe(folder, record) | {"tokens_matched": len(ours), "tokens_in_vocabulary": total}


def _check_detection(
    network: ReplacedTokenDetector, found: PreTrainedModel, folder: Path, same_tokenizer: bool
) -> None:
    """Raise CramError unless `found` has all three networks of replaced-token detection, for the same tokens."""
    if not isinstance(found, ReplacedTokenDetector):
        raise CramError(
            f"init_from: {folder}: has no generator; replaced-token detection starts from random weights, or from the "
            "folder of a run trained by it, with its checkpoints"
        )
    if not same_tokenizer:
        raise CramError(
            f"init_from: {folder}: has another tokenizer than the data set, which replaced-token detection cannot "
            f"start from; build the data set with tokenizer.path={folder / 'tokenizer'}"
        )
    theirs, ours = found.objective.embeddings, network.objective.embeddings
    if theirs != ours:
        raise CramError(f"init_from: {folder}: was trained with objective.embeddings={theirs}, not {ours}; set that")


def _match_tokens(
    folder: Path, record: dict[str, Any] | None, data: PreparedDataset
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the ids of tokens with the same text, in the run's and in the source's vocabulary; None for one tokenizer.

    Raises:
        CramError: the tokenizer cannot be loaded, or they have no token in common but special ones.
    """
    if record is not None and record["data"]["tokenizer_sha256"] == data.manifest["tokenizer_sha256"]:
        return None
    if record is None:
        loaded = find_model(str(folder)).load_tokenizer()
    else:
        loaded = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    theirs = loaded.get_vocab()
    ours = AutoTokenizer.from_pretrained(data.tokenizer).get_vocab()
    if ours == theirs:
        return None
    common = [token for token in ours if token in theirs]
    if len(common) <= len(data.manifest["special_tokens"]):
        raise CramError(
            f"init_from: {folder}: has no token in common with the tokenizer of the data set; build the data set "
            "with tokenizer.path set to its tokenizer"
        )
    return torch.tensor([ours[token] for token in common]), torch.tensor([theirs[token] for token in common])


def _with_vocabulary(
    found: PreTrainedModel, network: PreTrainedModel, matched: tuple[torch.Tensor, torch.Tensor]
) -> PreTrainedModel:
    """Return `found` with the run's vocabulary: rows of matched tokens are copied, the others are drawn."""
    ours, theirs = matched
    config = copy.deepcopy(found.config)
    for name in ("vocab_size", *(f"{role}_token_id" for role in ("pad", "cls", "sep", "mask", "bos", "eos", "unk"))):
        if hasattr(config, name):
            setattr(config, name, getattr(network.config, name, None))
    with torch.random.fork_rng():  # the run draws the same data and masks as without init_from
        changed = type(found)(config).eval()
    larger = copy.deepcopy(found.config)
    larger.vocab_size += 1
    with torch.device("meta"):
        probe = type(found)(larger).state_dict()
    old, new = found.state_dict(), changed.state_dict()
    for name, tensor in old.items():
        if probe[name].shape != tensor.shape:  # has a row for each token
            new[name][ours] = tensor[theirs]
        else:
            new[name] = tensor
    changed.load_state_dict(new)
    return changed


def _copy_weights(network: PreTrainedModel, found: PreTrainedModel, folder: Path) -> None:
    """Copy the weights, converted to CramBERT if necessary, and check that both models compute the same."""
    state = found.state_dict()
    if isinstance(network, CramBertForMaskedLM) and not isinstance(found, CramBertForMaskedLM):
        state = from_native(found, network, f"init_from: {folder}")
    ours = network.state_dict()
    different = [name for name in (ours | state) if _shape(ours, name) != _shape(state, name)]
    if different:
        name = different[0]
        raise CramError(
            f"init_from: {folder}: {len(different)} weights differ in shape from the run's model, such as {name} "
            f"({_shape(state, name)} there, {_shape(ours, name)} here); set the values of `model` with which it was "
            "trained"
        )
    network.load_state_dict(state)
    differences = list(map(_largest_difference, _networks(network), _networks(found)))
    if not all(difference <= _TOLERANCE for difference in differences):  # not max, which can lose a NaN
        by = " and ".join(f"{difference:.2g}" for difference in differences)
        raise CramError(
            f"init_from: {folder}: the run's model computes other outputs with these weights (they differ by {by}); "
            "set the values of `model` and objective.shift with which it was trained"
        )


def _shape(state: dict[str, torch.Tensor], name: str) -> str:
    """Describe the shape of a weight."""
    return "x".join(map(str, state[name].shape)) if name in state else "absent"


def _networks(model: PreTrainedModel) -> list[PreTrainedModel]:
    """Return the networks of a model that read rows of tokens."""
    if isinstance(model, ReplacedTokenDetector):
        return [model.trained_encoder(), model.generator]
    return [model]


def _largest_difference(network: PreTrainedModel, found: PreTrainedModel) -> float:
    """Return the largest difference of the logits, or of the last hidden states of encoders without a head."""
    config = network.config
    length = min(128, *(getattr(model.config, "max_position_embeddings", 128) for model in (network, found)))
    input_ids = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = [copy.deepcopy(model).eval()(input_ids=input_ids)[0] for model in (network, found)]
    return float((outputs[0] - outputs[1]).abs().max())


def _describe(folder: Path, record: dict[str, Any] | None) -> dict[str, Any]:
    if record is None:
        return {"path": str(folder)}
    keys = ("run_name", "config_hash", "steps", "tokens", "device_hours", "init_from")
    return {"path": str(folder), **{key: record[key] for key in keys if record.get(key) is not None}}
