"""MiniCPM-V in PyTorch, in full precision: what every other form of the model is compared with."""
