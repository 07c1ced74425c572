"""Composer algorithms, each driven by budget progress; one file each and one line in the registry."""
