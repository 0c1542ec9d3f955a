"""Conversations: with the reference or an engine, and the original's Python API."""
