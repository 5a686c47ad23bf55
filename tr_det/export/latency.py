"""The time of an exported network over that of its full-precision twin, in the same runtime.

Contestants take turns in one process, and what counts is the CPU time of one thread: other load on
the machine then affects all of them alike. The result is the median over the rounds of the ratio
within a round; times themselves are worth less.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx

from tr_det.export.float32 import Float32Writer
from tr_det.export.graph import Graph
from tr_det.export.model import RUNTIMES_OF, WRITERS
from tr_det.export.runtimes import open_runtime

FLOAT32 = Float32Writer.format
ROUNDS = 15
_WARM_UP_ROUNDS = 2
_SAMPLE_SECONDS = 0.02
_MOST_REPEATS = 1000


class Timing(NamedTuple):
    """One network in one runtime.

    Attributes:
        runtime: its name.
        form: format of the file, or ``"float32"``.
        seconds: of a call, CPU time, one for each round.
        over_float32: median ratio to the twin in the same runtime.
    """

    runtime: str
    form: str
    seconds: list[float]
    over_float32: float

    @property
    def milliseconds(self) -> float:
        """Median time of a call."""
        return 1e3 * statistics.median(self.seconds)


def written(
    graph: Graph, metadata: Mapping[str, Any], forms: Sequence[str] = tuple(WRITERS)
) -> tuple[dict[str, onnx.ModelProto], dict[str, str]]:
    """Return the models of a folded graph by format, and why others cannot be written.

    The full-precision twin is always among them.
    """
    models, refused = {}, {}
    for form, writer in {FLOAT32: Float32Writer, **{f: WRITERS[f] for f in forms}}.items():
        try:
            models[form] = writer(graph).write(metadata)
        except ValueError as error:
            refused[form] = str(error)
    for model in models.values():
        for value in model.graph.input if len(graph.inputs) > 1 else ():
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:  # sizes of different inputs have nothing in common
                    dim.dim_param = f"{value.name}.{dim.dim_param}"
    return models, refused


def compare(
    models: Mapping[str, onnx.ModelProto],
    inputs: Mapping[str, np.ndarray],
    runtimes: Sequence[str],
    rounds: int = ROUNDS,
) -> list[Timing]:
    """Time all models in all runtimes that run them in integers.

    Args:
        models: of `written`.
        inputs: float32, by name.
        runtimes: names.
        rounds: how often each has its turn.
    """
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for runtime in runtimes:
        for form, model in models.items():
            if form == FLOAT32 or runtime in RUNTIMES_OF[form]:
                opened = open_runtime(model.SerializeToString(), runtime, threads=1)
                calls[runtime, form] = partial(opened.run, inputs)
    samples = in_turns(calls, rounds)
    timings = []
    for (runtime, form), seconds in samples.items():
        ratios = (a / b for a, b in zip(seconds, samples[runtime, FLOAT32], strict=True))
        timings.append(Timing(runtime, form, seconds, statistics.median(ratios)))
    return timings


def in_turns(calls: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Return the CPU seconds per call of each contestant, one number for each round."""
    repeats = {}
    for key, call in calls.items():
        _seconds(call, 1)  # the first one also allocates memory
        once = max(_seconds(call, 1), 1e-6)
        repeats[key] = min(_MOST_REPEATS, math.ceil(_SAMPLE_SECONDS / once))
    samples: dict[Any, list[float]] = {key: [] for key in calls}
    for index in range(_WARM_UP_ROUNDS + rounds):
        for key, call in calls.items():
            seconds = _seconds(call, repeats[key])
            if index >= _WARM_UP_ROUNDS:
                samples[key].append(seconds)
    return samples


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    began = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - began) / repeats
