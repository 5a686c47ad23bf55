"""The demo: its run, table and pictures."""
