"""Keys of a TR-scheduled parameter group."""

# The module; not saved.
QUANTIZER = "quantizer"
# Identity: a checkpoint of another model or optimizer is refused.
NAME, BITS, OPTIMIZER = "name", "bits", "tr_optimizer"
# 0-d float32 tensors on the parameter's device, which loading a state dict does not cast. The last,
# the bias correction of the running TR, follows from the layer's updates, but a number would have
# to be sent to the device in every step.
TALR, RUNNING_TR, RATE, CORRECTION = "talr", "running_tr", "transition_rate", "tr_mass"
# Python numbers: R_t, lambda (None until "auto" has found it), the learning rate at construction,
# the optimizer's number of steps and the layer's own number of updates.
TARGET_TR, FACTOR, BASE_LR = "target_tr", "tr_factor", "tr_base_lr"
STEP, UPDATES = "tr_step", "tr_updates"

TENSORS = (TALR, RUNNING_TR, RATE, CORRECTION)
"""Keys of what is on the parameter's device."""

CONTROLLER = (TALR, RUNNING_TR, CORRECTION, TARGET_TR, FACTOR)
"""Keys of what a controller changes before the weights are updated."""
