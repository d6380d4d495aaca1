"""Models that are a user's own Python function or class."""
