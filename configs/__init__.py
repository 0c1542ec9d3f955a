"""The toolkit's data; a package so that a wheel carries it."""
