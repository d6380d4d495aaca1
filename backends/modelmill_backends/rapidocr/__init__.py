"""Runners on the networks of RapidOCR, through ONNX Runtime."""
