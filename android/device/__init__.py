"""The app on a phone: sideloading."""
