"""What a file is, by its bytes: signatures and headers. Only the standard library is used."""
