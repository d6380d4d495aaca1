"""The runners, one folder per runtime. A module imports its runtime only when a model is loaded.

Python code uses a model without a server through ``modelmill.load``; see ``modelmill_backends.loader``.
"""
