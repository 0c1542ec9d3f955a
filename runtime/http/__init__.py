"""What `serve` and `chat --web` share: guards, ports, bodies."""
