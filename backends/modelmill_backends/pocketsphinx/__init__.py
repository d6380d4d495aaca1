"""Runners on PocketSphinx, a classic recogniser of speech."""
