"""Runners on fastText."""
