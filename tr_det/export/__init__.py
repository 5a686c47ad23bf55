"""Export with proof: what was trained is what runs."""
