"""The workers: Celery nodes that answer a bell, claim jobs, run them in batches and settle them."""
