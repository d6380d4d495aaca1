"""Calculations and helpers that several runners need."""
