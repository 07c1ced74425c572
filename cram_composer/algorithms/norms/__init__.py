"""Normalisation layers replaced by faster kernels or dtypes."""
