"""The configuration: its keys, its files, and the pretraining that a run starts from."""
