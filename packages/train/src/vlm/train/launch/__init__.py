"""Start several processes: torchrun on one machine, srun under Slurm."""
