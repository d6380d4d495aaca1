"""A runner that runs no model: for measuring what the system itself costs."""
