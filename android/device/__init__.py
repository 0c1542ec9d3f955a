"""Sideloading: installs the app on a phone."""
