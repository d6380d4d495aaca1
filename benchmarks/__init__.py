"""Measurements: each a program of its own, printing ratios from one run."""
