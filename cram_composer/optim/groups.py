"""Parameter groups: weight decay and learning rates by parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from cram_composer.config.schema.optimizer import GroupsConfig
from cram_composer.optim.parameters import ModelParameter, describe_parameters, hidden_size

_NO_DECAY = ("bias", "norm")


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    config: GroupsConfig | None = None,
    mup_base_width: int | None = None,
    options: Callable[[ModelParameter], dict[str, Any]] = lambda parameter: {},
) -> list[dict[str, Any]]:
    """Return the optimizer groups over the trainable parameters: one per distinct set of options.

    A parameter is decayed if it has two dimensions or more and its name contains neither "bias" nor "norm" in any case.
    Embeddings are matrices and are decayed (with the tied decoder, once), as in the cramming code, whose exceptions are
    the names with "bias" and "norm", unless `decay_embeddings` is false. The scalar of the scaled sinusoids is decayed
    there and not here.

    With `layer_lr_decay` d, layer i of n learns at d^(n - i) of the rate of the head, embeddings at d^(n + 1) (Clark et
    al. 2020, arXiv 2003.10555, appendix B). With `mup_base_width` b and hidden size w, matrices learn at b / w of the
    rate, and their weight decay is multiplied by w / b, which keeps rate times decay; embeddings, decoders and vectors
    are unchanged (Yang et al. 2022, arXiv 2203.03466, table 8, for Adam). This is the optimizer's side of the transfer;
    initial weights, logits and attention are scaled in the model.

    Args:
        model: any module; `describe_parameters` determines depth and roles.
        lr: peak learning rate of a group without factors.
        weight_decay: of decayed parameters.
        config: the `optimizer.groups` section; its defaults if None.
        mup_base_width: see above.
        options: returns further hashable options of a parameter's group; an "lr" replaces `lr`.

    Returns:
        Non-empty groups with "params", "lr", "weight_decay" and the options; groups at rate `lr` come last.
    """
    config = config or GroupsConfig()
    matrix_lr_factor = 1.0
    if mup_base_width is not None:
        width = hidden_size(model)
        assert width is not None, "muP is for CramBERT, which has a hidden size"
        matrix_lr_factor = mup_base_width / width
    described = describe_parameters(model)
    deepest = max((parameter.depth for parameter in described), default=0)
    groups: dict[tuple[tuple[str, Any], ...], list[nn.Parameter]] = {}
    for parameter in described:
        group = {"lr": lr, "weight_decay": weight_decay, **options(parameter)}
        group["lr"] *= config.layer_lr_decay ** (deepest - parameter.depth)
        if not _is_decayed(parameter, config.decay_embeddings):
            group["weight_decay"] = 0.0
        if parameter.role == "embedding":
            group["lr"] *= config.embedding_lr
        if parameter.role == "matrix":
            group["lr"] *= matrix_lr_factor
            group["weight_decay"] /= matrix_lr_factor
        groups.setdefault(tuple(group.items()), []).append(parameter.parameter)
    # The clock reports the rate of the last group, which should be the configured one.
    ordered = sorted(groups.items(), key=lambda item: dict(item[0])["lr"] == lr)
    return [{"params": parameters, **dict(options)} for options, parameters in ordered]


def _is_decayed(parameter: ModelParameter, decay_embeddings: bool) -> bool:
    if parameter.role == "embedding" and not decay_embeddings:
        return False
    return parameter.parameter.ndim >= 2 and not any(part in parameter.name.lower() for part in _NO_DECAY)
