"""Runners on PyTorch, through the ``diffusers`` library."""
