"""The demo checkpoint: pictures that are drawn, questions about them, and the training script."""
