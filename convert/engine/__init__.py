"""Engines: toolchain, units, compiled blocks, their cache, the build."""
