"""A run of either side as its folder tells it: config, results, records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tr_det.core.nn.config import FULL_PRECISION
from tr_det.core.optim.optimizers import OPTIMIZERS
from tr_det.runtime.configs import leaves, parse
from tr_det.runtime.files import read_json
from tr_det.runtime.metrics import METRICS, Record, read_records
from tr_det.runtime.options import parse_pairs
from tr_det.runtime.results import RESULTS, Results, read_results
from tr_det.runtime.run_folder import CONFIG, DEMO, trained_folder
from tr_det.study.latents import WeightQuantizer

DETECTION, CLASSIFICATION = "detection", "classification"

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """What is in a run's folder; a run may still be going on.

    Attributes:
        folder: of the run.
        config: nested, as in its config.yaml.
        results: of results.json, {} before the run's end.
        records: of metrics.json, one for each iteration that has some.
        demo: the demo's results, {} for other runs.
    """

    folder: Path
    config: Config
    results: Results
    records: list[Record]
    demo: Results

    @property
    def side(self) -> str:
        """`DETECTION` or `CLASSIFICATION`."""
        return DETECTION if "MODEL" in self.config else CLASSIFICATION

    def value(self, detection: str, classification: str, default: Any = None) -> Any:
        """Return the config's value under the dotted key of the run's side."""
        value: Any = self.config
        for part in (detection if self.side == DETECTION else classification).split("."):
            value = value.get(part, {}) if isinstance(value, dict) else {}
        return default if value == {} else value

    @property
    def bits(self) -> tuple[int, int]:
        """Bits of weights and of inputs, 32 in full precision."""
        if self.side == DETECTION:
            if not self.value("MODEL.QUANT.ENABLED", ""):
                return FULL_PRECISION, FULL_PRECISION
            keys = ("MODEL.QUANT.WEIGHT_BITS", "MODEL.QUANT.ACT_BITS")
            weight, act = (int(self.value(key, "")) for key in keys)
            return weight, act
        return bits_from(str(self.value("", "quant.bits", "FP")))

    @property
    def bits_name(self) -> str:
        """``W4A4``, or ``FP``."""
        return bits_name(self.bits)

    @property
    def optimizer(self) -> str:
        """Name in `OPTIMIZERS`."""
        return str(self.value("SOLVER.OPTIMIZER", "solver.optimizer", "SGD"))

    @property
    def scheduled(self) -> bool:
        """Whether it is TR-scheduled."""
        return self.optimizer in OPTIMIZERS and OPTIMIZERS[self.optimizer].transition

    @property
    def updates(self) -> int:
        """Updates made, as far as they are recorded."""
        recorded = self.records[-1]["iteration"] + 1 if self.records else 0
        return int(self.results.get("updates", recorded))

    @property
    def evaluated(self) -> int:
        """Updates made before the last evaluation, as far as they are recorded."""
        if self.results or self.demo:
            return self.updates
        rows = [row["iteration"] + 1 for row in self.records if any(map(_is_metric, row))]
        return int(rows[-1]) if rows else 0

    @property
    def weight_quantizer(self) -> WeightQuantizer:
        """What the config says of the quantizers of weights."""
        name = self.value("MODEL.QUANT.WEIGHT_QUANTIZER", "quant.weight_quantizer", "fixed_grid")
        options = self.value("MODEL.QUANT.WEIGHT_OPTIONS", "quant.weight_options", {})
        if self.side == DETECTION:
            options = parse_pairs(options or [], "MODEL.QUANT.WEIGHT_OPTIONS")
        return WeightQuantizer(name, self.bits[0], options)

    def metrics(self) -> dict[str, float]:
        """Return the numbers of the last evaluation, inner ones as ``bbox/AP``; {} before one."""
        found = dict(leaves(self.results.get("metrics") or {}, "/"))
        if not found and self.demo:
            found = {f"bbox/{key}": value for key, value in self.demo["after_qat"].items()}
        if not found:
            evaluated = [row for row in self.records if any(map(_is_metric, row))]
            found = {
                k.removeprefix("test/"): v
                for k, v in (evaluated or [{}])[-1].items()
                if _is_metric(k)
            }
        return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}

    def metric(self) -> tuple[str, float | None]:
        """Return the name and the value of what a run of this side is judged by."""
        metrics = self.metrics()
        if self.side == CLASSIFICATION:
            return "accuracy", metrics.get("accuracy")
        names = [key for key in metrics if key.rpartition("/")[2] == "AP"]
        boxes = [key for key in names if "bbox" in key] or names
        return "AP", metrics[boxes[0]] if boxes else None


def read_run(folder: Path) -> RecordedRun:
    """Return what is in the folder of a run, or in that of the demo.

    Raises:
        FileNotFoundError: it is the folder of no run.
        ValueError: its config cannot be read.
    """
    folder = trained_folder(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: has no {CONFIG}; must be the folder of a run, of the demo or of a study"
        )
    try:
        config = parse(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not (isinstance(config, dict) and ("MODEL" in config or "model" in config)):
        raise ValueError(f"{path}: not the config of a run")
    try:
        results = read_results(folder)
    except ValueError:
        raise ValueError(f"{folder / RESULTS}: damaged") from None
    return RecordedRun(
        folder=folder,
        config=config,
        results=results,
        records=read_records(folder / METRICS),
        demo=_json(folder / DEMO),
    )


def bits_from(text: str) -> tuple[int, int]:
    """Return bits of weights and inputs as a classifier's config writes them.

    >>> bits_from("W2A4"), bits_from("FP")
    ((2, 4), (32, 32))
    """
    if text.upper() == "FP":
        return FULL_PRECISION, FULL_PRECISION
    weight, act = text.upper().removeprefix("W").split("A")
    return int(weight), int(act)


def bits_name(bits: tuple[int, int]) -> str:
    """Return bits as people write them.

    >>> bits_name((2, 4)), bits_name((32, 32))
    ('W2A4', 'FP')
    """
    return "FP" if bits == (FULL_PRECISION,) * 2 else f"W{bits[0]}A{bits[1]}"


def _is_metric(key: str) -> bool:
    return key.startswith(("test/", "bbox/", "segm/"))


def _json(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
