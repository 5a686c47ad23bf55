"""The embedded data of detection and classification."""
