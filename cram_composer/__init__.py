"""cram-composer: how good a language model can one GPU train in one day?"""

__version__ = "0.1.0"
