"""Bundles: manifest, plan, KV-cache kinds, weights file, journal."""
