"""What training tools of both kinds share: random states, errors, metrics, checkpoints.

Neither a detector nor a classifier is known here, and no Detectron2; beside torch there are
fvcore, NumPy and TensorBoard, which the core must not import. So it is a package of its own between
the core and its two users: tools -> detection | classification -> training -> core.
"""
