"""The HTTP API. It translates between HTTP and the job store, and does nothing else."""
