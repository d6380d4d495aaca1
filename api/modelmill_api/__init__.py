"""The HTTP front door: translates between the wire and the job store, and does nothing else."""
