"""Fields, media and helpers that several tasks share."""
