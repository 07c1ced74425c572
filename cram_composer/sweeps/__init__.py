"""Sweeps: many runs at one budget, planned, trained and compared."""
