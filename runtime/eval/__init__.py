"""`minicpmv eval`: the benchmarks that the model is known for, scored by their own rules."""
