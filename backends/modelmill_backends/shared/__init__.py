"""Calculations and helpers that several runners share."""
