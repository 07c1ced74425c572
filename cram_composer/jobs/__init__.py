"""Run jobs in processes of their own, on this machine or as Slurm arrays."""
