"""Shards to batches: open a data set, check it, stream it, mask it."""
