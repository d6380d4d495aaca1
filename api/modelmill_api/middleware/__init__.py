"""Middleware: the layers that every request passes."""
