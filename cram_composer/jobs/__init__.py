"""Run jobs in separate processes, on this machine or as Slurm arrays."""
