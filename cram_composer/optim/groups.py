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
    """Return the optimizer groups over the trainable parameters, one per distinct set of options.

    Weight decay applies to parameters with two or more dimensions whose name contains neither "bias" nor "norm" (case
    ignored). Embeddings count as matrices, as in the cramming code, unless `decay_embeddings` is False. Unlike there,
    the scalar of the scaled sinusoids is not decayed.

    With `layer_lr_decay` d, the rate of layer i of n is d^(n - i) times that of the head, and the rate of embeddings is
    d^(n + 1) times (Clark et al. 2020, arXiv 2003.10555, appendix B).

    With `mup_base_width` b and hidden size w, the rate of matrices is multiplied by b / w and their weight decay by
    w / b, so that rate times decay is unchanged (Yang et al. 2022, arXiv 2203.03466, table 8, for Adam). Embeddings,
    decoders and vectors are not affected. The model scales initial weights, logits and attention.

    Args:
        model: any module; `describe_parameters` determines depth and roles.
        lr: peak learning rate before these factors.
        weight_decay: weight decay of decayed parameters.
        config: the `optimizer.groups` section; its defaults if None.
        mup_base_width: see above.
        options: returns further hashable options of a parameter's group; "lr" among them replaces `lr`.

    Returns:
        Non-empty groups with "params", "lr", "weight_decay" and the options; groups at rate `lr` come last.
    """
    config = config or GroupsConfig()
    matrix_lr_factor = 1.0
    if mup_base_width is not None:
        width = hidden_size(model)
        assert width is not None, "muP needs a CramBERT, which has a hidden size"
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
    # The budget callback reports the rate of the last group, which should be the configured one.
    ordered = sorted(groups.items(), key=lambda item: dict(item[0])["lr"] == lr)
    return [{"params": parameters, **dict(options)} for options, parameters in ordered]


def _is_decayed(parameter: ModelParameter, decay_embeddings: bool) -> bool:
    if parameter.role == "embedding" and not decay_embeddings:
        return False
    return parameter.parameter.ndim >= 2 and not any(part in parameter.name.lower() for part in _NO_DECAY)
