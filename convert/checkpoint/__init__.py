"""Checkpoints: configuration, reader, writer, shards, tensor tables, synthetic ones."""
