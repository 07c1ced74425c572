"""Algorithms that replace normalisation layers by faster kernels or lower precision."""
