"""Engines from outside: places, processes, requests, phones."""
