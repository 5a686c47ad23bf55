"""Networks by name, and the network that a config asks for."""
