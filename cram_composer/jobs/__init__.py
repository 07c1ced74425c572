"""Process pools and Slurm arrays for data builds, sweeps and evaluations."""
