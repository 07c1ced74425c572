"""Parameter groups and the optimizer factory."""

from cram_composer.optim.factory import OPTIMIZERS, build_optimizer
from cram_composer.optim.groups import parameter_groups

__all__ = ["OPTIMIZERS", "build_optimizer", "parameter_groups"]
