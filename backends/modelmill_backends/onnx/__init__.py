"""Runners on ONNX Runtime."""
