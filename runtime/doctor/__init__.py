"""What the toolkit stands on, checked."""
