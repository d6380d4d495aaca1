"""How one run works off a model's queue."""
