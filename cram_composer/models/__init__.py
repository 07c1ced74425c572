"""Encoders: the CramBERT model files that travel with an export, and modules to build, train and export a masked LM."""
