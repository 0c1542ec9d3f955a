"""The commands that run a model."""
