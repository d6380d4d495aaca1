"""What an API process does in the background, while it answers requests."""
