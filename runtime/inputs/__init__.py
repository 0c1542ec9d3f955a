"""What a model is given: prompts, pictures, sampling settings, defaults."""
