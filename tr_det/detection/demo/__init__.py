"""The demo: its phases, progress lines, table and pictures."""
