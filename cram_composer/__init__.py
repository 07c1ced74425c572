"""cram-composer trains masked language models from scratch on a wall-clock budget."""

__version__ = "0.1.0"
