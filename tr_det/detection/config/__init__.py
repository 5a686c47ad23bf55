"""The configuration: keys, reading, checks."""
