"""A report on an export: sizes, operations, and time over full precision; JSON and Markdown."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tr_det.export.costs import LayerCost, layer_costs, value_shapes
from tr_det.export.fold import fold
from tr_det.export.graph import Graph
from tr_det.export.latency import FLOAT32, ROUNDS, Timing, compare, written
from tr_det.export.model import installed_runtimes
from tr_det.export.part import quantized_part
from tr_det.export.runtimes import TITLES
from tr_det.export.saturation import this_cpu
from tr_det.export.sizes import WeightSize, float_sizes, onnx_sizes, packed_sizes
from tr_det.export.subject import Subject
from tr_det.export.table import versions
from tr_det.export.trace import trace
from tr_det.runtime.files import write_json, write_text

Record = dict[str, Any]

WHOLE, PART = "whole network", "quantized part"


def make_report(
    subject: Subject,
    image: np.ndarray,
    graph: Graph | None = None,
    runtimes: Sequence[str] = (),
    rounds: int = ROUNDS,
) -> Record:
    """Measure an export; it takes some hundred calls of the network.

    Args:
        subject: what is exported.
        image: (1, C, H, W), float32, as the network gets it.
        graph: folded, where it has been made already.
        runtimes: names; by default those that are installed.
        rounds: of the timing.

    Raises:
        ValueError: a network that cannot be represented, or an image that it cannot take.
    """
    if graph is None:
        graph = fold(trace(subject.net, subject.example, subject.names).graph)
    images = dict.fromkeys(graph.inputs, image)
    shapes = value_shapes(graph, {name: x.shape for name, x in images.items()})
    costs = layer_costs(graph, shapes)
    models, refused = written(graph, subject.metadata.to_dict())
    files = {form: model.ByteSize() for form, model in models.items()}
    weights = {form: onnx_sizes(graph, models[form]) for form in models if form != FLOAT32}
    try:
        files["packed"], weights["packed"] = _packed(subject)
    except ValueError as error:
        refused["packed"] = str(error)
    runtimes = runtimes or installed_runtimes("qcdq")
    latency = latency_records(WHOLE, compare(models, images, runtimes, rounds))
    part = quantized_part(graph, shapes)
    if part is not None:
        inputs = part_inputs(part, shapes)
        timings = compare(written(part, {})[0], inputs, runtimes, rounds)
        latency += latency_records(PART, timings)
    return {
        "checkpoint": subject.metadata.checkpoint,
        "cpu": this_cpu().name,
        "threads": 1,
        "rounds": rounds,
        "versions": versions(),
        "image_size": list(image.shape[2:]),
        "files": {
            form: {"bytes": size, "of_float32": size / files[FLOAT32]}
            for form, size in files.items()
        },
        "not_written": refused,
        "weights": _weight_records(float_sizes(graph), weights),
        "macs": sum(cost.macs for cost in costs),
        "bops": sum(cost.bops for cost in costs),
        "float32_bops": sum(cost.full_bops for cost in costs),
        "layers": [{**cost._asdict(), "bops": cost.bops} for cost in costs],
        "latency": latency,
    }


def part_inputs(part: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return inputs of a quantized part, of the sizes that it has within the network."""
    random = np.random.default_rng(0)
    values = {name: random.standard_normal(shapes[name], np.float32) for name in part.inputs}
    return {name: np.abs(x) for name, x in values.items()}  # as after a ReLU


def latency_records(what: str, timings: Iterable[Timing]) -> list[Record]:
    """Return timings for JSON; ``what`` was timed."""
    return [
        {
            "what": what,
            "runtime": timing.runtime,
            "format": timing.form,
            "ms": timing.milliseconds,
            "over_float32": timing.over_float32,
            "samples_ms": [1e3 * seconds for seconds in timing.seconds],
        }
        for timing in timings
    ]


def write_report(report: Record, path: str | Path) -> tuple[Path, Path]:
    """Write ``PATH.json`` and ``PATH.md``; return both paths."""
    as_json, as_text = Path(f"{path}.json"), Path(f"{path}.md")
    write_json(as_json, report)
    write_text(as_text, markdown(report))
    return as_json, as_text


def markdown(report: Record) -> str:
    """Return a report as tables."""
    height, width = report["image_size"]
    written_with = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    saved = report["float32_bops"] / report["bops"]
    file = report["checkpoint"].get("file", "")
    parts = [
        f"# Export of {file}" if file else "# Export",
        "## Files\n\n" + _table(["file", "MB", "of FP32"], _file_rows(report)),
        *[f"{form}: not written; {why}" for form, why in report["not_written"].items()],
        "## Quantized weights, over FP32\n\nWith the scales, in parentheses.\n\n"
        + _weight_table(report["weights"]),
        f"## Operations at {height} x {width}\n\n{report['macs'] / 1e9:.3f} G MACs, "
        f"{report['bops'] / 1e9:.1f} G BOPs: 1/{saved:.1f} of FP32\n\n"
        + _table(["bits", "layers", "G MACs", "G BOPs"], _cost_rows(report["layers"])),
        "## CPU time of an image\n\nThe ratios are the result: contestants took turns, and each is "
        "the median over the rounds.\n\n"
        + _table(["what", "runtime", "format", "ms", "over FP32"], _latency_rows(report)),
        f"{report['cpu']}, {report['threads']} thread, {report['rounds']} rounds; {written_with}",
    ]
    return "\n\n".join(parts) + "\n"


def _packed(subject: Subject) -> tuple[int, dict[int, WeightSize]]:
    from tr_det.export.packed import write_packed

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_packed(subject.model, path, subject.metadata.to_dict())
        return path.stat().st_size, packed_sizes(path)


def _weight_records(
    plain: Mapping[int, int], weights: Mapping[str, Mapping[int, WeightSize]]
) -> list[Record]:
    return [
        {
            "bits": bits,
            "float32_bytes": size,
            **{form: sizes[bits]._asdict() for form, sizes in weights.items()},
        }
        for bits, size in plain.items()
    ]


def _file_rows(report: Record) -> list[list[str]]:
    return [
        [form, f"{size['bytes'] / 1e6:.2f}", f"1/{1 / size['of_float32']:.2f}"]
        for form, size in report["files"].items()
    ]


def _weight_table(rows: Sequence[Record]) -> str:
    forms = [key for key in (rows[0] if rows else ()) if key not in ("bits", "float32_bytes")]
    cells = []
    for row in rows:
        plain = row["float32_bytes"]
        ratios = [{k: plain / size for k, size in row[form].items() if size} for form in forms]
        texts = [f"1/{r['codes']:.2f} (1/{r['whole']:.2f})" if r else "-" for r in ratios]
        cells.append([str(row["bits"]), f"{plain / 1e6:.2f}", *texts])
    return _table(["bits", "FP32 MB", *forms], cells)


def _cost_rows(layers: Sequence[Record]) -> list[list[str]]:
    groups: dict[tuple[int, int], list[LayerCost]] = {}
    for layer in layers:
        cost = LayerCost(**{key: layer[key] for key in LayerCost._fields})
        groups.setdefault((cost.weight_bits, cost.input_bits), []).append(cost)
    return [
        [
            f"W{weight}A{inputs}",
            str(len(costs)),
            f"{sum(cost.macs for cost in costs) / 1e9:.3f}",
            f"{sum(cost.bops for cost in costs) / 1e9:.1f}",
        ]
        for (weight, inputs), costs in sorted(groups.items())
    ]


def _latency_rows(report: Record) -> list[list[str]]:
    return [
        [
            row["what"],
            TITLES[row["runtime"]],
            row["format"],
            f"{row['ms']:.2f}",
            f"{row['over_float32']:.3f}",
        ]
        for row in report["latency"]
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(cells) for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)
