"""Runs the cases through every stage, and compares what the models give."""
