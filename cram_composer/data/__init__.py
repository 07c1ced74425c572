"""Text to shards (sources, tokenizer, packing, shuffle), and shards to training batches (stream, masking)."""
