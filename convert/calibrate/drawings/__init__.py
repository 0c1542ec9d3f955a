"""Pictures of many kinds for calibration, drawn by code."""
