"""How many experiments run: SLURM jobs through submitit, or a pool of processes on this machine."""
