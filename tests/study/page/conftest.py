"""Folders of runs and of a study as trainers and runner write them, made without training."""

import json
import math

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from tr_det.core import QuantConfig, quantize_model, set_scales
from tr_det.study.statistics import paired, spread

ATTACK = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'&"
"""What must be shown as it is, wherever a text comes from."""
UPDATES = 40
LAYERS = ("stem.conv", "body.0.conv1", "body.0.conv2", "head.conv")


def records(shift=0.0):
    """Return the records of a TR-scheduled run with a tracker."""
    for iteration in range(UPDATES):
        part = iteration / UPDATES
        target = 0.01 * (1 + math.cos(math.pi * part)) / 2
        row = {
            "iteration": iteration,
            "loss": 2 - part,
            "total_loss": 2 - part,
            "lr": 0.1 * (1 - part),
        }
        row |= {"tr/oscillating": 0.1 * part, "tr/frozen": 0.05 * part}
        for place, layer in enumerate(LAYERS):
            values = {
                "running": target * (0.9 + shift),
                "target": target,
                "talr": 0.1 + shift + place,
            }
            values |= {
                "step_size": 1e-3 * (1 - part) ** 4,
                "distance": 0.25 + shift,
                "rate": target,
            }
            row |= {f"tr_layers/{layer}/{key}": value for key, value in values.items()}
        if (iteration + 1) % 10 == 0:
            row |= {"test/accuracy": 90 + 5 * part, "bbox/AP": 30 + 5 * part}
        yield row


def results(folder, metrics, **cost):
    return {
        "seed": 0,
        "metrics": metrics,
        "updates": UPDATES,
        "tr": {"first_target": 0.01, "last_target": 1e-6, "running_tr": 2e-4, "mean_rate": 5e-3},
        "cost": {"storage_mb": 0.5, "storage_mb_at_32_bits": 4.0, **cost},
        "seconds": 100.0,
        "versions": {"torch": "2.x", "python": ATTACK},
        "paths": {"folder": str(folder), "checkpoint": "", "start": ""},
    }


def write_run(folder, config, metrics, shift=0.0, **cost):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [json.dumps(record) for record in records(shift)]
    (folder / "metrics.json").write_text("\n".join(lines) + "\n")
    (folder / "results.json").write_text(json.dumps(results(folder, metrics, **cost)))
    return folder


def write_checkpoint(path, step, bits):
    torch.manual_seed(step)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    config = QuantConfig(weight_bits=bits, act_bits=bits)
    quantize_model(model, config)
    set_scales(model, lambda: model(torch.rand(2, 3, 8, 8)))
    optimizer = {"param_groups": [], "tr_det": {"step": step}}
    torch.save({"model": model.state_dict(), "optimizer": optimizer, "iteration": step}, path)


@pytest.fixture
def classifier(tmp_path):
    """Return the folder of a classification run whose texts are hostile."""
    config = {"model": {"name": ATTACK}, "quant": {"bits": "W2A2"}, "data": {"name": ATTACK}}
    config |= {"solver": {"optimizer": "SGDT"}, "run": {"seed": 0}}
    metrics = {"accuracy": 94.5, "top5": 99.0, "loss": 0.02}
    folder = write_run(tmp_path / "classifier", config, metrics)
    for name, step in (("model_0000010", 10), ("model_final", UPDATES)):
        write_checkpoint(folder / f"{name}.pth", step, bits=2)
    return folder


@pytest.fixture
def detector(tmp_path):
    """Return the folder of a detection run with an annotated dataset of its own."""
    data = tmp_path / "a data set"
    (data / "images").mkdir(parents=True)
    tree = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": ATTACK}, {"id": 7, "name": "cat"}],
    }
    found = []
    for image in range(3):
        Image.new("RGB", (640, 480), (40 * image, 90, 120)).save(data / f"images/{image}.png")
        tree["images"].append(
            {"id": image, "file_name": f"{image}.png", "width": 640, "height": 480}
        )
        for number in range(image + 1):
            box = [40 + 150 * number, 30, 100, 80]
            entry = {"image_id": image, "category_id": 3 if number else 7, "bbox": box}
            tree["annotations"].append(
                {**entry, "id": len(tree["annotations"]), "area": 8000, "iscrowd": 0}
            )
            found.append({**entry, "score": 0.9 - 0.3 * number})
    (data / "boxes.json").write_text(json.dumps(tree))
    name = f"page_{tmp_path.name}"
    register = [f"{name} '{data}/boxes.json' '{data}/images'"]
    quant = {
        "ENABLED": True,
        "WEIGHT_BITS": 4,
        "ACT_BITS": 4,
        "WEIGHT_QUANTIZER": "fixed_grid",
        "WEIGHT_OPTIONS": [],
    }
    config = {
        "MODEL": {"META_ARCHITECTURE": "QuantRetinaNet", "QUANT": quant},
        "DATASETS": {"TEST": [name], "REGISTER": register},
        "SOLVER": {"OPTIMIZER": "SGDT"},
    }
    metrics = {"bbox": {"AP": 41.25, "AP50": 60.0, f"AP-{ATTACK}": 40.0, "AP-cat": 42.5}}
    folder = write_run(tmp_path / "detector", config, metrics, bops=4.8e10)
    (folder / "inference").mkdir()
    (folder / "inference/coco_instances_results.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def study(tmp_path):
    """Return the folder of a study: two widths of bits, three methods, three seeds, a search."""
    folder = tmp_path / "study"
    folder.mkdir()
    axes = {"bits": ["W4A4", "W2A2"], "method": ["SGD", "SGDT", ATTACK]}
    means = {"SGD": 80.0, "SGDT": 85.0, ATTACK: 79.5}
    spreads = {"SGD": (-0.5, 0.0, 0.5), "SGDT": (-0.4, 0.1, 0.3), ATTACK: (0.9, -0.9, 0.0)}
    cells, rows, values_of = [], [], {}
    for bits in axes["bits"]:
        for number, method in enumerate(axes["method"]):
            labels = {"bits": bits, "method": method}
            done = not (bits == "W2A2" and method == ATTACK)
            cost = {
                "storage_mb": 1.5 if bits == "W4A4" else 0.9,
                "bops": 2e10 if bits == "W4A4" else 5e9,
            }
            values = {}
            for seed in range(3):
                name = f"rows/{bits}-{number}/seed{seed}"
                if done:
                    values[seed] = means[method] + spreads[method][seed] - 5 * (bits == "W2A2")
                if done and seed == 0:
                    config = {
                        "model": {"name": "net"},
                        "quant": {"bits": bits},
                        "data": {"name": "digits"},
                    }
                    config |= {"solver": {"optimizer": "SGDT"}}
                    write_run(folder / name, config, {"accuracy": values[0]}, 0.02 * number)
                cell = {
                    "labels": labels,
                    "seed": seed,
                    "folder": name,
                    "identity": name,
                    "origin": "",
                }
                cell |= {
                    "settings": {"quant.bits": bits},
                    "value": values.get(seed),
                }
                cell |= {
                    "state": "done" if done else "failed",
                    "results": {},
                    "error": "" if done else ATTACK,
                }
                cells.append(cell)
            values_of[bits, method] = values
            found = spread(list(values.values())) if done else None
            other = paired(values, values_of[bits, "SGD"]) if method != "SGD" else None
            row = {
                "labels": labels,
                "n": len(values),
                "mean": found and found.mean,
                "std": found and found.std,
            }
            row |= {
                "values": values,
                "states": dict.fromkeys(range(3), "done" if done else "failed"),
            }
            row |= {"difference": other and vars(other), "chosen": {}, "cost": cost if done else {}}
            rows.append({**row, "tr": {}, "measures": {}})
    points = [
        {"point": [rate], "state": "done", "value": 70 - abs(rate - 0.1)}
        for rate in (0.01, 0.1, 1.0)
    ]
    search = {
        "labels": rows[0]["labels"],
        "rows": [rows[0]["labels"]],
        "keys": {"solver.lr": [0.01, 0.1, 1.0]},
    }
    search |= {
        "settings": {},
        "seeds": [9],
        "chosen": {"solver.lr": 0.1},
        "at_edge": [],
        "candidates": [],
        "points": points,
    }
    record = {
        "name": f"A study {ATTACK}",
        "side": "classification",
        "metric": "accuracy",
        "axes": axes,
        "columns": "",
        "baseline": {"method": "SGD"},
        "seeds": [0, 1, 2],
        "measures": [],
        "command": "python tools/run_study.py study.yaml",
        "environments": [
            {
                "versions": {"torch": "2.x"},
                "machine": {"cpu": ATTACK, "gpu": "", "processes": 1, "threads": 1},
                "runs": 12,
            }
        ],
        "hours": {"runs": 1.5},
        "cells": cells,
        "runs": [],
        "searches": [search],
        "rows": rows,
    }
    (folder / "study.json").write_text(json.dumps(record))
    return folder
