"""The demo's last phase: the trained model as files that other runtimes execute, and the proof."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import nn

FORMATS = {"onnxruntime": "integer", "openvino": "qcdq"}
"""Runtime -> the format that is quickest in it."""

PROVEN_IMAGES = 4

Evaluate = Callable[[nn.Module, str], dict[str, float]]


@dataclass(frozen=True)
class ExportedRow:
    """One file in one runtime.

    Attributes:
        runtime: its name.
        format: of the file.
        metrics: COCO's, 0-100.
        file_mb: size of the file.
        ms: CPU time of the network for one image, one thread.
        float32_ms: of the same network in full precision, in the same runtime.
        over_float32: median ratio of both.
    """

    runtime: str
    format: str
    metrics: dict[str, float]
    file_mb: float
    ms: float
    float32_ms: float
    over_float32: float


def check_packages() -> None:
    """Raise ValueError unless a model can be exported and run here."""
    there = {name for name in ("onnx", *FORMATS) if importlib.util.find_spec(name)}
    if "onnx" not in there or len(there) == 1:
        raise ValueError(
            "--export: needs onnx, and onnxruntime or openvino; pip install -e '.[export]'"
        )


def export_phase(
    cfg: CfgNode, checkpoint: Path, evaluate: Evaluate, say: Callable[[str], None]
) -> dict[str, Any]:
    """Export a trained detector, prove the files, evaluate and time them.

    Args:
        cfg: of the run; files go to ``export`` in its folder.
        checkpoint: of the trained model.
        evaluate: of a detector and the name of a folder; returns COCO's metrics.
        say: prints a line.

    Returns:
        {"rows": [`ExportedRow` as a dict], "codes", "images", "failures": of the proofs}.
    """
    from tr_det.detection.export import detector_subject
    from tr_det.detection.exported import ExportedDetector
    from tr_det.export.latency import FLOAT32, compare, written
    from tr_det.export.metadata import read
    from tr_det.export.model import installed_runtimes, prove
    from tr_det.export.runtimes import open_runtime
    from tr_det.export.subject import write

    folder = Path(cfg.OUTPUT_DIR)
    subject = detector_subject(folder / "config.yaml", (), str(checkpoint))
    images = [image.numpy() for image in subject.images(PROVEN_IMAGES)]
    runtimes = installed_runtimes("qcdq")
    paths = {form: folder / "export" / f"model_{form}.onnx" for form in FORMATS.values()}
    models, failures, codes = {}, [], 0
    for form, path in paths.items():
        exported = write(subject, form, path)
        assert exported is not None
        models[form] = exported.model
        if not set(runtimes) & set(installed_runtimes(form)):
            continue
        proof = prove(exported, images)
        failures += [f"{form}: {line}" for line in proof.failures()]
        codes += sum(backend.total.codes for backend in proof.backends[1:])
        verdict = "proof FAILS" if proof.failures() else "proof holds"
        size = path.stat().st_size / 1e6
        say(f"      {path.name}: {size:.2f} MB, {verdict} on {len(images)} images")
        twin, _ = written(exported.writer.graph, {}, ())
    timings = {
        (timing.runtime, timing.form): timing
        for timing in compare({**twin, **models}, {"images": images[0]}, runtimes)
    }
    rows = []
    for runtime in runtimes:
        form = FORMATS[runtime]
        opened = open_runtime(paths[form], runtime)
        metrics = evaluate(ExportedDetector(opened, read(opened.metadata)), f"exported_{runtime}")
        say(f"      AP {metrics['AP']:.2f}  {form} in {runtime}")
        timing = timings[runtime, form]
        row = ExportedRow(
            runtime=runtime,
            format=form,
            metrics=metrics,
            file_mb=paths[form].stat().st_size / 1e6,
            ms=timing.milliseconds,
            float32_ms=timings[runtime, FLOAT32].milliseconds,
            over_float32=timing.over_float32,
        )
        rows.append(asdict(row))
    return {"rows": rows, "codes": codes, "images": len(images), "failures": failures}
