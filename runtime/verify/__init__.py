"""Does a bundle still say what the full-precision model says? Stage by stage, with numbers."""
