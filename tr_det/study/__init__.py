"""Studies: runs that are repeated over settings and seeds, their tables and figures."""
