"""Read run folders and report on them; independent of the training code."""
