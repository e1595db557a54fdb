"""What a model would write at each position, and how sure it is of it."""
