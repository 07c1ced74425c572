"""Token rows: fast encoding, packing, ordering, shuffling."""
