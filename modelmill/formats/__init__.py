"""What a file is, by its bytes: signatures, headers and text encodings. It decodes no media."""
