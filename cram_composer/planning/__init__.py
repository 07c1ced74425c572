"""Planning before a run: what a budget buys, what fits in memory, and whether more devices pay off."""
