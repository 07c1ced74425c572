"""Tokenizers: training sample, vocabularies by kind, saving and loading."""
