"""Keys of a TR-scheduled parameter group."""

# Not saved: the module. Saved: identity, to refuse a checkpoint of another model or optimizer ...
QUANTIZER = "quantizer"
NAME, BITS, OPTIMIZER = "name", "bits", "tr_optimizer"
# ... 0-d float32 tensors on the parameter's device, which loading a state dict does not cast ...
# (the last, what K's measurements weigh, follows from the layer's updates, but a number would have
# to be sent there in every step) ...
TALR, RUNNING_TR, RATE, MASS = "talr", "running_tr", "transition_rate", "tr_mass"
# ... and Python numbers: R_t, lambda (None while it is being found), the learning rate that the
# group was made with, the optimizer's clock and the layer's own count of updates.
TARGET_TR, FACTOR, BASE_LR = "target_tr", "tr_factor", "tr_base_lr"
STEP, UPDATES = "tr_step", "tr_updates"

TENSORS = (TALR, RUNNING_TR, RATE, MASS)
"""What lives on the parameter's device."""

STATE = (*TENSORS, NAME, BITS, OPTIMIZER, TARGET_TR, FACTOR, BASE_LR, STEP, UPDATES)
"""What a saved TR group has."""

CONTROLLER = (TALR, RUNNING_TR, MASS, TARGET_TR, FACTOR)
"""What a controller changes before the weights are updated."""
