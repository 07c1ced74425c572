"""Configuration: schema, composition of layers, validation, and the source of every value. Does not import torch."""

from cram_composer.config.compose import Composed, compose, compose_run

__all__ = ["Composed", "compose", "compose_run"]
