"""The vision encoder and the resampler as an ONNX model."""
