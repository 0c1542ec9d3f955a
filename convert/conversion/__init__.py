"""One conversion: what was asked for, what its products share, and the bundle."""
