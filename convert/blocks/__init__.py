"""The model's blocks as Relax functions over TIR kernels; their weights are arguments."""
