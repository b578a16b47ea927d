"""Submit a recipe to SLURM, turn an allocation into a Ray cluster, run the driver."""
