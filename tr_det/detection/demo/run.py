"""The demo's phases: evaluate full precision, quantize, evaluate, train, evaluate, and export.

Each phase leaves its result in ``state.json``, so that an interrupted run resumes where it stopped.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter, TensorboardXWriter
from torch import nn

from tr_det.detection.checkpoint.checkpointer import QuantCheckpointer
from tr_det.detection.data.datasets import check_datasets, datasets_root
from tr_det.detection.demo.export import export_phase
from tr_det.detection.demo.options import DemoOptions, build_config, full_precision_config
from tr_det.detection.demo.output import (
    ProgressLine,
    inference_progress,
    log_to_file,
    prints_to_log,
)
from tr_det.detection.demo.pictures import Detection, draw_detections, draw_tr
from tr_det.detection.demo.report import results_table, tr_series
from tr_det.detection.engine.calibration import calibrate
from tr_det.detection.engine.trainer import QuantTrainer
from tr_det.detection.solver.optimizers import OPTIMIZER_REGISTRY
from tr_det.digits.dataset import build_digit_scenes
from tr_det.export.images import opened
from tr_det.runtime.files import read_json, write_json, write_text
from tr_det.runtime.metrics import read_records
from tr_det.runtime.processes import only_writer
from tr_det.runtime.run_folder import CONFIG, DEMO, set_aside
from tr_det.runtime.signals import held

PICTURE_IMAGES = 4


def run_demo(options: DemoOptions, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run what is left to do; return the results, which are also in ``results.json``.

    Raises:
        ValueError: another demo writes to the same folder.
    """
    cfg = build_config(options)
    with only_writer(options.output, "--output"):
        return _run_phases(options, cfg, say)


def _run_phases(options: DemoOptions, cfg: CfgNode, say: Callable[[str], None]) -> dict[str, Any]:
    run = _Run(options, cfg, say)
    if options.data is None:
        run.phase("dataset", "Building the embedded dataset", run.build_dataset)
    else:
        run.phase(
            "fp_training",
            f"Training in full precision for {run.fp.SOLVER.MAX_ITER} iterations",
            run.train_full_precision,
        )
    run.phase("fp", "Evaluating the full-precision model", run.evaluate_full_precision)
    run.phase(
        "before_qat",
        f"Quantizing to W{options.bits}A{options.bits} and evaluating",
        run.quantize_and_evaluate,
    )
    run.phase(
        "qat", f"Training with {options.optimizer} for {options.iterations} iterations", run.train
    )
    run.phase("after_qat", "Evaluating after QAT", run.evaluate_after)
    if options.export:
        run.phase("export", "Exporting, proving and evaluating the files", run.export)
    results = run.finish()
    say("\n" + results_table(results))
    say(f"\nResults are in {options.output}: results.json, tr_curves.png, detections.png")
    say(f"Checkpoints, metrics.json, TensorBoard events and log.txt are in {cfg.OUTPUT_DIR}")
    if options.export:
        say(f"Exported files are in {run.folder / 'export'}")
    return results


class _Run:
    """One run's phases and their state on disk."""

    def __init__(self, options: DemoOptions, cfg: CfgNode, say: Callable[[str], None]) -> None:
        self.options, self.cfg, self.say = options, cfg, say
        self.weights = options.weights
        if options.data is not None:
            check_datasets(cfg)
            self.fp = full_precision_config(options)
            self.weights = Path(self.fp.OUTPUT_DIR) / "model_final.pth"
        self.folder = Path(cfg.OUTPUT_DIR)
        self.state_file = self.folder / "state.json"
        self.done, self.phases = 0, 6 if options.export else 5
        self.complete = self.folder / DEMO  # written last, a copy of results.json
        self.state: dict[str, Any] = {"seconds": {}}
        if self.state_file.exists():
            self.state = read_json(self.state_file)
            if not (isinstance(self.state, dict) and "seconds" in self.state):
                raise ValueError(f"{self.state_file}: not written by the demo, or damaged")
        trained = "after_qat" in self.state
        only_export_is_left = options.export and trained and "export" not in self.state
        if self.complete.exists() and not only_export_is_left:
            # The same command again is a new run; one killed here does this again.
            set_aside(self.folder, "*", last=self.complete.name)
            self.state = {"seconds": {}}
        self.folder.mkdir(parents=True, exist_ok=True)
        log_to_file(self.folder)
        write_text(self.folder / CONFIG, cfg.dump())  # what tools read of a run

    def phase(self, name: str, title: str, work: Callable[[], Any]) -> None:
        """Do a phase unless it has been done, and save its result and seconds."""
        self.done += 1
        if name in self.state:
            self.say(f"[{self.done}/{self.phases}] {title}: done before")
            return
        self.say(f"[{self.done}/{self.phases}] {title}")
        seed_all_rng(self.cfg.SEED)
        start = time.perf_counter()
        seconds = self.state["seconds"]
        try:
            result = self.state[name] = work()
        finally:  # the seconds of an interrupted attempt count too
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
            write_text(self.state_file, json.dumps(self.state))
        if isinstance(result, dict) and "AP" in result:
            self.say(
                f"      AP {result['AP']:.2f}  AP50 {result['AP50']:.2f}  ({seconds[name]:.0f} s)"
            )

    def build_dataset(self) -> str:
        """Build the digit scenes unless they are there."""

        def progress(done: int, total: int) -> None:
            if done % 200 == 0 or done == total:
                self.say(f"      {done}/{total} scenes")

        return str(build_digit_scenes(datasets_root(), progress=progress).root)

    def train_full_precision(self) -> int:
        """Train the model that everything starts from, or take that of another run."""
        if self.weights.exists():
            self.say(f"      {self.weights} is there")
        else:
            write_text(self.weights.with_name(CONFIG), self.fp.dump())
            self._train(self.fp)
        return int(self.fp.SOLVER.MAX_ITER)

    def evaluate_full_precision(self) -> dict[str, float]:
        """Evaluate the checkpoint that everything starts from."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.QUANT.ENABLED = False
        return self._evaluate(self._load(cfg, self.weights), "fp")

    def quantize_and_evaluate(self) -> dict[str, float]:
        """Quantize the full-precision model, calibrate it, save it and evaluate it."""
        model = self._load(self.cfg, self.weights)
        report: Any = model.quant_report
        self.state["storage_mb"] = {
            "fp": report.storage_mb(quantized=False),
            "quantized": report.storage_mb(),
        }
        loader = QuantTrainer.build_train_loader(self.cfg)
        calibrate(model, loader, self.cfg.MODEL.QUANT.CALIBRATION_BATCHES)
        QuantCheckpointer(model, str(self.folder)).save("calibrated")
        (self.folder / "last_checkpoint").unlink()  # only QAT's checkpoints are resumed from
        return self._evaluate(model, "before_qat")

    def train(self) -> int:
        """Run QAT from the calibrated model, or resume it."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = str(self.folder / "calibrated.pth")
        self._train(cfg)
        return int(cfg.SOLVER.MAX_ITER)

    def evaluate_after(self) -> dict[str, float]:
        """Evaluate the trained model."""
        model = self._load(self.cfg, self.folder / "model_final.pth")
        return self._evaluate(model, "after_qat")

    def export(self) -> dict[str, Any]:
        """Export the trained model."""
        return export_phase(self.cfg, self.folder / "model_final.pth", self._evaluate, self.say)

    def finish(self) -> dict[str, Any]:
        """Write the pictures and results.json."""
        options, state = self.options, self.state
        records = read_records(self.folder / "metrics.json")
        series = tr_series(records)
        scheduled = OPTIMIZER_REGISTRY.get(options.optimizer).transition
        if scheduled and self.cfg.SOLVER.TR.FACTOR > 0:  # -1 has it found in the first iterations
            series["initial_target"] = self.cfg.SOLVER.TR.FACTOR * options.bits**0.5
        results = {
            **{key: state[key] for key in ("fp", "before_qat", "after_qat", "storage_mb")},
            **({"export": state["export"]} if options.export else {}),
            "tr": series,
            "seconds": {**state["seconds"], "total": sum(state["seconds"].values())},
            "weight_bits": options.bits,
            "act_bits": options.bits,
            "optimizer": options.optimizer,
            "iterations": options.iterations,
            "seed": self.cfg.SEED,
            "torch": torch.__version__,
            "device": self.cfg.MODEL.DEVICE,
        }
        bits = f"W{options.bits}A{options.bits}"
        title = f"{bits} {options.optimizer}, {options.iterations} iterations"
        learning_rate = [(row["iteration"], row["lr"]) for row in records if "lr" in row]
        draw_tr(options.output / "tr_curves.png", series, title, learning_rate)
        self._draw_detections()
        write_json(options.output / "results.json", results)
        write_json(self.complete, results)
        return results

    def _train(self, cfg: CfgNode) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = ()  # evaluated as a phase of its own
        trainer = _DemoTrainer(cfg, self.say)
        trainer.resume_or_load(resume=True)
        if trainer.start_iter:
            self.say(f"      resuming at iteration {trainer.start_iter}")
        with held():
            trainer.train()

    def _load(self, cfg: CfgNode, weights: Path) -> nn.Module:
        model = QuantTrainer.build_model(cfg)
        QuantCheckpointer(model).load(str(weights))
        return model

    def _evaluate(self, model: nn.Module, name: str) -> dict[str, float]:
        evaluator = QuantTrainer.build_evaluator(
            self.cfg, self.cfg.DATASETS.TEST[0], str(self.folder / name)
        )
        with prints_to_log(), inference_progress(self.say):
            return dict(QuantTrainer.test(self.cfg, model, [evaluator])["bbox"])

    def _draw_detections(self) -> None:
        # Loading the scenes also sets the categories of the detections.
        scenes = DatasetCatalog.get(self.cfg.DATASETS.TEST[0])
        scenes = sorted(scenes, key=lambda scene: -len(scene["annotations"]))
        fp, quantized = self._detections("fp"), self._detections("after_qat")
        rows = []
        for scene in scenes[:: max(1, len(scenes) // PICTURE_IMAGES)][:PICTURE_IMAGES]:
            image = np.asarray(opened(scene["file_name"]).convert("RGB"))
            truth: list[Detection] = [
                (a["bbox"], a["category_id"], None) for a in scene["annotations"]
            ]
            rows.append((image, [truth, fp[scene["image_id"]], quantized[scene["image_id"]]]))
        titles = ("ground truth", "full precision", f"{self.options.bits}-bit")
        classes = MetadataCatalog.get(self.cfg.DATASETS.TEST[0]).thing_classes
        draw_detections(self.options.output / "detections.png", rows, classes, titles)

    def _detections(self, phase: str) -> dict[int, list[Detection]]:
        """Return an evaluated phase's detections by image."""
        metadata = MetadataCatalog.get(self.cfg.DATASETS.TEST[0])
        category = metadata.thing_dataset_id_to_contiguous_id
        found: dict[int, list[Detection]] = defaultdict(list)
        for entry in read_json(self.folder / phase / "coco_instances_results.json"):
            detection = (entry["bbox"], category[entry["category_id"]], entry["score"])
            found[entry["image_id"]].append(detection)
        return found


class _DemoTrainer(QuantTrainer):
    """QuantTrainer that prints short lines instead of Detectron2's log."""

    def __init__(self, cfg: CfgNode, say: Callable[[str], None]) -> None:
        self._say = say
        super().__init__(cfg)

    def build_writers(self) -> list[EventWriter]:
        return [
            ProgressLine(self.cfg.SOLVER.MAX_ITER, self._say),
            TensorboardXWriter(self.cfg.OUTPUT_DIR),
        ]
