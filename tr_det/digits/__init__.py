"""The embedded dataset and what the first command needs. Importing it costs nothing."""
