"""Figures over time and the ledger figure."""
