"""What a file is, by its content. Standard library only."""
