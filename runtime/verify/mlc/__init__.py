"""An MLC package against the full-precision model."""
