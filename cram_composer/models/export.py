"""Export of a masked LM as a Hugging Face folder, its verification, and fill-mask predictions."""

from __future__ import annotations

import copy
import inspect
import os
import shutil
from pathlib import Path

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cram_composer.errors import CramError
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.native import to_native


def export_model(
    model: PreTrainedModel,
    tokenizer_dir: Path,
    destination: Path,
    card: str,
) -> Path:
    """Write `destination`: fp32 safetensors, config, tokenizer, README.md, and CramBERT's code where it is needed.

    Written in a folder beside it and renamed, so that `destination` is never half-written.

    Args:
        model: what `exported_form` made of a masked LM.
        tokenizer_dir: a tokenizer folder.
        destination: the folder; replaced if it exists.
        card: text of README.md.

    Returns:
        `destination`.
    """
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    # Without token types, a tokenizer that hands them over would make every call fail.
    has_types = "token_type_ids" in inspect.signature(model.forward).parameters
    names = {} if has_types else {"model_input_names": ["input_ids", "attention_mask"]}
    AutoTokenizer.from_pretrained(tokenizer_dir, **names).save_pretrained(temporary)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    previous = destination.with_name(f".{destination.name}.{os.getpid()}.old")
    if destination.exists():
        os.replace(destination, previous)
    os.replace(temporary, destination)
    shutil.rmtree(previous, ignore_errors=True)
    return destination


def exported_form(model: PreTrainedModel) -> PreTrainedModel:
    """Convert a masked LM for export: to an equal class of transformers if there is one, else to a plain copy.

    The model may be in any dtype, on any device, and its norms fused kernels.
    """
    copied = plain_copy(model)
    native = to_native(copied) if isinstance(copied, CramBertForMaskedLM) else None
    return copied if native is None else native


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model on the CPU in fp32 and evaluation mode, made of plain torch modules, seeing every token.

    A new instance, so that weights are tied as the class ties them (safetensors refuses other sharing), and neither
    fused kernels nor compiled code come along.
    """
    config = copy.deepcopy(model.config)
    if isinstance(config, CramBertConfig) and config.stack == "token-dropping":
        config.stack = "plain"  # it has no weights of its own, and fine-tuning is not to leave tokens out
    with torch.random.fork_rng():  # discards the initial values
        copied = type(model)(config)
    copied.load_state_dict(model.state_dict())
    return copied.eval()


def verify_export(destination: Path, model: PreTrainedModel, tolerance: float = 1e-4) -> float:
    """Load an exported folder and compare its logits with the model's, in fp32 on the CPU, with padding in the batch.

    Args:
        destination: a folder written by `export_model`.
        model: the model it was written from, holding the weights that were written.
        tolerance: largest absolute difference allowed.

    Returns:
        The largest absolute difference of a logit. Another class may sum in another order, hence the tolerance.

    Raises:
        CramError: it is above `tolerance`, or not a number.
    """
    loaded = AutoModelForMaskedLM.from_pretrained(destination, trust_remote_code=True).eval()
    original = copy.deepcopy(model).float().cpu().eval()
    config = model.config
    length = min(128, config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(config.vocab_size, (2, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, length // 2 :] = 0
    with torch.inference_mode():
        logits = (m(input_ids=input_ids, attention_mask=attention_mask).logits for m in (original, loaded))
        difference = float(torch.max(torch.abs(torch.sub(*logits))[attention_mask.bool()]))
    if not difference <= tolerance:
        raise CramError(f"{destination}: its logits differ from the trained model's by {difference:.2e} > {tolerance}")
    return difference


def fill_masks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], k: int = 3
) -> list[list[tuple[str, float]]]:
    """The `k` likeliest words, with probabilities, for the first mask of each sentence.

    Raises:
        CramError: a sentence has no mask token.
    """
    device = model.device
    training = model.training
    model.eval()
    answers = []
    for sentence in sentences:
        encoded = tokenizer(sentence, return_tensors="pt", truncation=True)
        position = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
        if not len(position):
            raise CramError(f"sentence '{sentence}': it has no {tokenizer.mask_token} to fill in")
        with torch.inference_mode():
            inputs = {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}
            probabilities = model(**inputs).logits[0, position[0]].float().softmax(dim=-1)
        best = probabilities.topk(k)
        words = [tokenizer.decode([token]).strip() for token in best.indices.tolist()]
        answers.append(list(zip(words, best.values.tolist(), strict=True)))
    model.train(training)
    return answers
