"""Before a run: what a budget buys, what fits into memory, and whether more devices pay."""
