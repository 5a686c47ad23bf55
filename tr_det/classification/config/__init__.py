"""The configuration: keys, files, the run that another one starts from."""
