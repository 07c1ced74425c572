"""Averages of the weights for evaluation and export: EMA, SWA, LAWA."""
