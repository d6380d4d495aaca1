"""The workers: Celery nodes that take a bell, claim jobs, run them in batches and settle each one."""
