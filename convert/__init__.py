"""Checkpoint to bundle: reading, models for the compiler, ONNX export, bundle writing."""
