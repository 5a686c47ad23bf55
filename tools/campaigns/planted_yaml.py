"""Code in YAML files: configs, what they build on, and the folders of runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from campaigns import tiny
from campaigns.children import command
from campaigns.plants import IMAGE, Case, Place

YAML_TAGS = {
    "apply": "!!python/object/apply:os.system [{touch}]",
    "eval": "!!python/object/apply:eval [\"__import__('os').system('{touch}')\"]",
    "new": "!!python/object/new:os.system [{touch}]",
    "subprocess": "!!python/object/apply:subprocess.check_output [[touch, {ran}]]",
    "state": "!!python/object/new:type {{args: [x, !!python/tuple [], {{}}], "
    "state: !!python/object/apply:os.system [{touch}]}}",
}


def _value(place: Place, kind: str) -> str:
    """Return a YAML value that runs code under an unsafe loader."""
    return YAML_TAGS[kind].format(touch=f"touch {place.ran}", ran=place.ran)


def _plant_yaml(place: Place, kind: str, position: str, side: str) -> Path:
    """Write a config with a planted value of its own, or in a file that it builds on."""
    name, key = (tiny.DETECTOR, "OUTPUT_DIR") if side == "detector" else (tiny.CLASSIFIER, "run")
    text = (place.shared / name).read_text()
    planted = f"{key}: {_value(place, kind)}\n"
    tree = yaml.safe_load(text)
    if position == "own":
        tree.pop(key, None)
        (place.folder / "planted.yaml").write_text(yaml.safe_dump(tree) + planted)
        return place.folder / "planted.yaml"
    (place.folder / "base.yaml").write_text(planted)
    middle = "base.yaml"
    if position == "base of base":
        (place.folder / "middle.yaml").write_text("_BASE_: base.yaml\n")
        middle = "middle.yaml"
    tree["_BASE_"] = middle
    (place.folder / "planted.yaml").write_text(yaml.safe_dump(tree))
    return place.folder / "planted.yaml"


def _detection_tools(place: Place, config: Path) -> dict[str, Callable[[], Any]]:
    """Return the tools that read a detector's config."""
    weights = place.shared / "detector/out/model_final.pth"
    named = ("MODEL.WEIGHTS", weights)
    image = place.folder / IMAGE
    program = place.shared / "detector/model.pt2"
    read = ("--config-file", config)
    return {
        "train_net": command("train_net.py", *read),
        "train_net --eval-only": command("train_net.py", *read, "--eval-only", *named),
        "dequantize": command("dequantize.py", "--output", "o.pth", *read, *named),
        "unfold_norms": command("unfold_norms.py", "--output", "o.pth", *read, *named),
        "export_model": command("export_model.py", config, "--checkpoint", weights),
        "predict": command("predict.py", weights, image, *read),
        "evaluate_exported": command("evaluate_exported.py", program, *read),
    }


def cases() -> Iterator[Case]:
    """Yield unsafe tags in every place, for every tool that reads configs."""
    tools = (
        *("train_net", "train_net --eval-only", "dequantize", "unfold_norms"),
        *("export_model", "predict", "evaluate_exported"),
    )
    for position in ("own", "base", "base of base"):
        for tool in tools:
            yield _yaml_case("apply", position, "detector", tool)
        yield _yaml_case("apply", position, "classifier", "train_classifier")
    for kind in YAML_TAGS:
        if kind != "apply":
            yield _yaml_case(kind, "own", "detector", "train_net")
            yield _yaml_case(kind, "own", "classifier", "train_classifier")
    for side in ("detector", "classifier"):
        for tool in ("export_model", "predict"):
            yield Case(f"YAML in a {side}'s folder: {tool}", _run_folder(side, tool))
    yield Case("YAML in a classifier's folder: report", _run_folder("classifier", "report"))
    yield Case("YAML in a folder: train_classifier", _run_folder("classifier", "train_classifier"))
    yield Case("YAML: Detectron2's tools with our environment module", _stock_tool)


def _yaml_case(kind: str, position: str, side: str, tool: str) -> Case:
    def plant(place: Place) -> Callable[[], Any]:
        config = _plant_yaml(place, kind, position, side)
        if side == "classifier":
            return command("train_classifier.py", "--config-file", config)
        return _detection_tools(place, config)[tool]

    return Case(f"YAML {kind} in its {position}: {tool}", plant)


def _run_folder(side: str, tool: str) -> Callable[[Place], Callable[[], Any]]:
    def plant(place: Place) -> Callable[[], Any]:
        run = place.folder / "out"
        shutil.copytree(place.shared / side / "out", run)
        _plant_yaml(place, "apply", "own", side).replace(run / "config.yaml")
        image = place.folder / IMAGE
        config = place.shared / tiny.CLASSIFIER
        return {
            "export_model": command("export_model.py", run, "--output", "model.onnx"),
            "predict": command("predict.py", run, image),
            "report": command("report.py", run),
            "train_classifier": command("train_classifier.py", "--config-file", config),
        }[tool]

    return plant


def _stock_tool(place: Place) -> Callable[[], Any]:
    config = _plant_yaml(place, "apply", "own", "detector")
    code = (
        "import sys; from detectron2.config import get_cfg; get_cfg().merge_from_file(sys.argv[1])"
    )
    env = {**os.environ, "DETECTRON2_ENV_MODULE": "tr_det.detection.env"}
    env["PYTHONPATH"] = str(tiny.ROOT)

    def call() -> None:
        done = subprocess.run(
            [sys.executable, "-c", code, str(config)], env=env, check=False, capture_output=True
        )
        raise SystemExit(done.returncode)  # Detectron2's own traceback is not ours to mend

    return call
