"""What every room of the toolkit shares: console, files, hashes, caches, time."""
