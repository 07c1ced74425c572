"""Configuration: the schema, the composition of recipes, and where every value came from. Knows no torch."""

from cram_composer.config.compose import Composed, compose

__all__ = ["Composed", "compose"]
