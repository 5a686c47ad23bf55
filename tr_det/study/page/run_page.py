"""The page of one run: what it gave, how it got there, and from what."""

from __future__ import annotations

import yaml

from tr_det import __version__
from tr_det.study.page.content import (
    Block,
    Cell,
    Charts,
    Code,
    Column,
    Folded,
    Page,
    Pictures,
    Row,
    Section,
    Table,
    Tile,
)
from tr_det.study.page.detections import side_by_side
from tr_det.study.page.histograms import weight_histograms
from tr_det.study.page.panels import layer_charts, layer_rows, run_charts
from tr_det.study.page.recorded import DETECTION, RecordedRun
from tr_det.study.page.run_results import (
    BASELINE,
    START,
    compared_with,
    lead,
    number_cell,
    results_section,
    start_of,
)
from tr_det.study.page.scale import number, size

FOOTER = f"Made by tools/report.py of tr_det {__version__}; nothing is loaded from elsewhere."
OPEN_LAYERS = 24
"""More small charts than these are folded away."""


def run_page(run: RecordedRun, baseline: RecordedRun | None = None) -> Page:
    """Return the page of a run.

    Args:
        run: the run.
        baseline: what it is compared with; by default the run that it started from, if that is
            still there, or what the demo started from.
    """
    start = None if baseline else start_of(run)
    other = baseline or start
    compared = compared_with(run, other, BASELINE if baseline else START)
    name, value = run.metric()
    sections = [
        results_section(run, compared),
        _curves(run),
        *_layers(run),
        _weights(run),
        *([_detections(run, other)] if run.side == DETECTION else []),
        _config(run),
    ]
    data = run.value("DATASETS.TEST", "data.name", "")
    where = ", ".join(data) if isinstance(data, (list, tuple)) else str(data)
    return Page(
        kind=f"{run.side} run",
        title=f"{run.bits_name} {model_name(run)} with {run.optimizer}",
        subtitle=str(run.folder),
        lead=lead(run, name, value, where, compared),
        tiles=_tiles(run, name, value),
        sections=sections,
        footer=FOOTER,
    )


def model_name(run: RecordedRun) -> str:
    """Return the network's name; a detector's with its backbone."""
    if run.side != DETECTION:
        return str(run.value("", "model.name", "network"))
    architecture = str(run.value("MODEL.META_ARCHITECTURE", "", "detector")).removeprefix("Quant")
    backbone = str(run.value("MODEL.BACKBONE.NAME", "", ""))
    if "resnet" in backbone:
        return f"{architecture} ResNet-{run.value('MODEL.RESNETS.DEPTH', '', '')}"
    if "timm" in backbone:
        return f"{architecture} {run.value('MODEL.TIMM.NAME', '', '')}"
    if "mobilenet" in backbone:
        return f"{architecture} MobileNetV2"
    return architecture


def settings_text(run: RecordedRun) -> str:
    """Return the run's config as YAML."""
    return str(yaml.safe_dump(dict(run.config), sort_keys=True, allow_unicode=True))


def command_of(run: RecordedRun) -> str:
    """Return the command that repeats a run."""
    tool = "train_net.py" if run.side == DETECTION else "train_classifier.py"
    key = "OUTPUT_DIR" if run.side == DETECTION else "run.output_dir"
    return f"tools/{tool} --config-file {run.folder / 'config.yaml'} {key} output/again"


def _tiles(run: RecordedRun, name: str, value: float | None) -> list[Tile]:
    cost, tr = run.results.get("cost") or {}, run.results.get("tr") or {}
    tiles = []
    if value is not None:
        accuracy = name == "accuracy"
        note = "" if accuracy else "0–100, mean over IoU 0.5–0.95"
        tiles.append(Tile(name, f"{value:.2f}{' %' if accuracy else ''}", note))
    if cost.get("storage_mb"):
        full = cost.get("storage_mb_at_32_bits") or cost["storage_mb"]
        times = full / cost["storage_mb"]
        note = f"{size(full)} at 32 bits: {times:.1f} times smaller" if times > 1.005 else ""
        tiles.append(Tile("storage", size(cost["storage_mb"]), note))
    if cost.get("bops"):
        tiles.append(Tile("bit operations", f"{number(cost['bops'] / 1e9)} G", "for one image"))
    if tr.get("first_target") and "running_tr" in tr:
        ended = f"{number(100 * tr['running_tr'])} %"
        note = f"at the end; its target began at {number(100 * tr['first_target'])} %"
        note += f" (lambda {number(tr['factor'])})" if "factor" in tr else ""
        tiles.append(Tile("running TR", ended, note))
    if run.results.get("seconds"):
        minutes = run.results["seconds"] / 60
        text = f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        tiles.append(Tile("training time", text, f"{run.updates:,} updates"))
    return tiles


def _curves(run: RecordedRun) -> Section:
    charts = run_charts(run.records)
    if not charts:
        return Section("curves", "Curves", ["metrics.json has no records."])
    texts = []
    if not run.scheduled and run.bits[0] <= 8:
        texts = [f"{run.optimizer} has no target TR and no TALR; its transition rate is measured."]
    return Section("curves", "Curves", texts, [Charts(charts)])


def _layers(run: RecordedRun) -> list[Section]:
    charts, (titles, rows) = layer_charts(run.records), layer_rows(run.records)
    if not charts and not rows:
        return []
    blocks: list[Block] = []
    if charts:
        small: Block = Charts(charts, small=True)
        if len(charts) > OPEN_LAYERS:
            small = Folded("Charts of all layers", [small], note=f"{len(charts)} layers")
        blocks.append(small)
    if rows:
        cells = [
            Row([Cell(layer), *(number_cell(v, digits=3) for v in values)])
            for layer, values in rows
        ]
        columns = [Column("layer", numeric=False), *map(Column, titles)]
        blocks.append(Table("Layers at the last record", columns, cells, filters=[]))
    text = (
        "Effective step size of each layer (mean change of a level per update) on one logarithmic "
        "scale, over updates; below, each layer's last values."
    )
    return [Section("layers", "Step sizes by layer", [text], blocks)]


def _weights(run: RecordedRun) -> Section:
    charts, reason = weight_histograms(run)
    title = "Latent weights"
    if not charts:
        return Section("weights", title, [reason])
    text = (
        "Latent weights in units of codes, at the first and the last checkpoint that is left. "
        "Dotted lines are transition points: a weight that crosses one changes its code. What is "
        "clipped is in the outermost bars."
    )
    return Section("weights", title, [text], [Charts(charts)])


def _detections(run: RecordedRun, other: RecordedRun | None) -> Section:
    pictures, text = side_by_side(run, other)
    return Section("detections", "Detections", [text], [Pictures(pictures)] if pictures else [])


def _config(run: RecordedRun) -> Section:
    more = {
        **(run.results.get("versions") or {}),
        **(run.results.get("machine") or {}),
        "device": run.value("MODEL.DEVICE", "run.device", ""),
        "seed": run.results.get("seed", run.value("SEED", "run.seed", "")),
        "started from": run.results.get("paths", {}).get("start") or "random weights",
        "evaluated checkpoint": run.results.get("paths", {}).get("checkpoint", ""),
    }
    rows = [Row([Cell(key), Cell(str(value))]) for key, value in more.items() if value != ""]
    columns = [Column("what", numeric=False), Column("value", numeric=False)]
    blocks: list[Block] = [
        Code("The same run again", command_of(run)),
        Table("Environment", columns, rows, sortable=False),
        Folded("Config", [Code("config.yaml", settings_text(run))]),
    ]
    return Section("config", "Config and environment", blocks=blocks)
