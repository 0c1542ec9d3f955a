"""`minicpmv serve`: chat completions over HTTP, as OpenAI's clients ask for them."""
