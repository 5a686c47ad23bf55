"""Exported W4A4 detectors against their full-precision twins, in the same runtime, on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from benchmarks.measure import Settings
from benchmarks.networks import CONFIGS, ROOT

if TYPE_CHECKING:
    from tr_det.detection.export import DetectorNet

TITLE = "Exported detectors, W4A4, over FP32 in the same runtime, CPU time of one thread"
DEVICE = "cpu"
CASES = (("retinanet-r18-half", 128), ("retinanet-r18-half", 320), ("retinanet-r18", 320))
"""Networks and the sides of their images, px; the embedded data has 128."""
BARS = {
    ("onnxruntime", "integer"): 0.65,
    ("openvino", "qcdq"): 0.5,
    ("onnxruntime", "qcdq"): 1.0,
}
"""Runtime and format -> the most that the quantized part may take of the twin's time."""
WEIGHTS_SEED, IMAGES_SEED = 0, 1
_PACKAGES = ("onnx", "onnxruntime", "openvino")


def missing() -> list[str]:
    """Return what cannot be measured here."""
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    return [f"{name} is not installed: pip install -e '.[export]'" for name in absent]


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Return one row per network, part, runtime and format."""
    if importlib.util.find_spec("onnx") is None:
        return []
    cases = CASES[:1] if settings.tiny else CASES
    return [row for name, side in cases for row in _rows_of(name, side, settings)]


def _rows_of(name: str, side: int, settings: Settings) -> Iterator[dict[str, Any]]:
    from tr_det.export.costs import value_shapes
    from tr_det.export.fold import fold
    from tr_det.export.latency import compare, written
    from tr_det.export.model import installed_runtimes
    from tr_det.export.part import quantized_part
    from tr_det.export.report import PART, WHOLE, part_inputs
    from tr_det.export.trace import trace

    net, images = calibrated_detector(name, side, settings.tiny)
    graph, images = fold(trace(net, images, net.output_names).graph), images[:1]
    shapes = value_shapes(graph, {"images": images.shape})
    part = quantized_part(graph, shapes)
    assert part is not None
    measured = {WHOLE: (graph, {"images": images.numpy()}), PART: (part, part_inputs(part, shapes))}
    for what, (network, inputs) in measured.items():
        models, _ = written(network, {})
        for timing in compare(models, inputs, installed_runtimes("qcdq"), settings.rounds):
            bar = BARS.get((timing.runtime, timing.form)) if what == PART else None
            yield {
                "network": f"{name}, {images.shape[-1]} px",
                "what": what,
                "runtime": timing.runtime,
                "format": timing.form,
                "median, ms": timing.milliseconds,
                "over FP32": timing.over_float32,
                "bar": bar,
                "holds": None if bar is None else "yes" if timing.over_float32 <= bar else "NO",
                "_seconds": timing.seconds,
            }


def calibrated_detector(
    name: str, side: int, tiny: bool, options: Sequence[Any] = ()
) -> tuple[DetectorNet, torch.Tensor]:
    """Return a detector with random weights, W4A4 unless the options say otherwise, and 2 images.

    Args:
        name: of a network.
        side: of the images, px, before they are padded as test images are.
        tiny: few channels.
        options: keys and values of the config.
    """
    from detectron2.modeling import build_model

    from tr_det.core import set_scales
    from tr_det.detection.config.reading import load_config
    from tr_det.detection.export import DetectorNet

    plain = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    cfg = load_config(ROOT / CONFIGS[name][0], [*plain, *options])
    cfg.MODEL.QUANT.ENABLED = True
    cfg.MODEL.RESNETS.NORM = "BN"  # SyncBN trains on GPUs only
    if tiny:
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
        cfg.MODEL.FPN.OUT_CHANNELS = 16
    torch.manual_seed(WEIGHTS_SEED)
    net = DetectorNet(build_model(cfg))
    side = -(-side // net.backbone.size_divisibility) * net.backbone.size_divisibility
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(IMAGES_SEED))
    net.train()
    with torch.no_grad():
        set_scales(net, lambda: net(images))
    return net.eval(), images
