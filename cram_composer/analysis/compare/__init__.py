"""Comparison of groups of runs: statistics, verdicts, text and page."""
