"""Checks across keys: combinations that exclude each other, and limits of scale-out strategies."""
