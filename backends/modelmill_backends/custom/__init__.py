"""Models that are somebody's own Python function or class."""
