"""Recognises file formats and text encodings by their content. It decodes no media."""
