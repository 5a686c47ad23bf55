"""Training, evaluation and results."""
