"""Calibration: samples, layers, what was chosen, target sizes."""
