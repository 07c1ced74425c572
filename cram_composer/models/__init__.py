"""Encoders: the CramBERT model files that travel with an export, and what builds, trains and exports a masked LM."""
