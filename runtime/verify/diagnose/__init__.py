"""Where a failed check comes from."""
