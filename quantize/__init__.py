"""Number formats: schemes, their numpy references, and the layouts of quantized weights."""
