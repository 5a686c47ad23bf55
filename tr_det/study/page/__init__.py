"""The page of a run or of a study: one HTML file that needs nothing else."""
