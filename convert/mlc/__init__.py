"""The decoder as a package for MLC-LLM."""
