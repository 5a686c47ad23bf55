"""TR-scheduled optimizers and the parameter groups they need."""
