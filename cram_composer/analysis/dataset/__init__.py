"""Inspection of a finished data set."""
