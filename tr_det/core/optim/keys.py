"""Keys of a TR-scheduled parameter group."""

# Not saved: the module. Saved: identity, to refuse a checkpoint of another model ...
QUANTIZER = "quantizer"
NAME, BITS = "name", "bits"
# ... 0-d float32 tensors on the parameter's device, which loading a state dict does not cast ...
TALR, RUNNING_TR, RATE = "talr", "running_tr", "transition_rate"
# ... and Python numbers.
TARGET_TR, STEP = "target_tr", "tr_step"

CONTROLLER = (TALR, RUNNING_TR, TARGET_TR)
"""What a controller changes before the weights are updated."""
