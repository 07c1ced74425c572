"""Read and show the folders of finished and running runs; imports nothing of training."""
