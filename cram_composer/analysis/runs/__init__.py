"""Run folders read from disk."""
