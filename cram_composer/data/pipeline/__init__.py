"""Text to shards: sources, stages, tokenizer, packing, shuffling, publishing."""
