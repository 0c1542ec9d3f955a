"""Running the model: PyTorch reference, compiled blocks, chat and verify."""
