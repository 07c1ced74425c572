"""Parameter groups: what is decayed, and whose learning rate differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from cram_composer.config.schema.optimizer import GroupsConfig
from cram_composer.optim.parameters import ModelParameter, describe, hidden_size

_NO_DECAY = ("bias", "norm")


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    config: GroupsConfig | None = None,
    mup_base_width: int | None = None,
    options: Callable[[ModelParameter], dict[str, Any]] = lambda parameter: {},
) -> list[dict[str, Any]]:
    """The optimizer groups over the trainable parameters: one per set of options that occurs.

    A parameter is decayed if it has two dimensions or more and neither "bias" nor "norm" is in its name, whatever the
    case. Embeddings are matrices and are decayed (with the decoder tied to them, once), as by the cramming code, whose
    exceptions are the names with "bias" and "norm", unless `decay_embeddings` is false. The scalar of the scaled
    sinusoids is decayed there and not here.

    With `layer_lr_decay` d, layer i of n learns at d^(n - i) of the rate of the head, embeddings at d^(n + 1) (Clark et
    al. 2020, arXiv 2003.10555, appendix B). With `mup_base_width` b and hidden size w, matrices learn at b / w of the
    rate, and their weight decay is w / b of what it was, so that rate times decay stays; embeddings, tied decoders,
    vectors and untied decoders keep theirs (Yang et al. 2022, arXiv 2203.03466, table 8, for Adam). That is the
    optimizer's side of the transfer: initial weights, logits and attention have theirs in the model.

    Args:
        model: any module; depth and roles are those of `describe`.
        lr: peak learning rate of a group without factors.
        weight_decay: that of decayed parameters.
        config: the `optimizer.groups` section, its defaults if None.
        mup_base_width: see above.
        options: what else goes into a parameter's group, hashable; an "lr" among it takes the place of `lr`.

    Returns:
        Groups with "params", "lr", "weight_decay" and the options; those at `lr` are last. None is empty.
    """
    config = config or GroupsConfig()
    shrink = 1.0
    if mup_base_width is not None:
        width = hidden_size(model)
        assert width is not None, "muP is of CramBERT, which has a hidden size"
        shrink = mup_base_width / width
    described = describe(model)
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
            group["lr"] *= shrink
            group["weight_decay"] /= shrink
        groups.setdefault(tuple(group.items()), []).append(parameter.parameter)
    # The clock reports the rate of the last group: that should be the one the run's configuration names.
    ordered = sorted(groups.items(), key=lambda item: dict(item[0])["lr"] == lr)
    return [{"params": parameters, **dict(options)} for options, parameters in ordered]


def _is_decayed(parameter: ModelParameter, decay_embeddings: bool) -> bool:
    if parameter.role == "embedding" and not decay_embeddings:
        return False
    return parameter.parameter.ndim >= 2 and not any(part in parameter.name.lower() for part in _NO_DECAY)
