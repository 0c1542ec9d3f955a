"""`minicpmv convert`, `info` and `synth`."""
