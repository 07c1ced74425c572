"""Evaluation of a masked language model."""
