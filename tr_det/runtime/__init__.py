"""What every run shares: files, checkpoints, metrics, results, streams of samples, processes.

Neither a detector nor a classifier is known here, and no Detectron2; beside torch there are
fvcore, NumPy and TensorBoard, which the core must not import.
"""
