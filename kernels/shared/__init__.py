"""What operators or backends use unchanged."""
