"""Measurements. Each one is a program of its own that prints ratios from one run."""
