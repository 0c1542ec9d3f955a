"""Shared by every room: console, files, hashes, caches, timing."""
