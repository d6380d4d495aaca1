"""Runners on PyTorch, through the ``transformers`` library."""
