"""Stages of a data build: independent functions of text, one per file."""
