"""Measures how fast a bundle runs, beside what the machine's memory allows."""
