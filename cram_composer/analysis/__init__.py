"""Reading finished and running cram folders from disk and showing them; imports nothing of training."""
