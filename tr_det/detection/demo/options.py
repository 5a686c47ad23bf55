"""The demo's command line, and the configs that follow from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from tr_det.core.errors import check, check_among
from tr_det.detection.config.reading import load_config
from tr_det.detection.data.register import entries_from
from tr_det.detection.demo.export import check_packages
from tr_det.detection.solver.optimizers import OPTIMIZER_REGISTRY

LEARNING_RATES = {"SGD": 0.01, "Adagrad": 0.01, "RMSprop": 1e-4}
"""Base learning rates of the demo; those of Adam's family have 1e-3."""

OWN_KEYS = {
    "OUTPUT_DIR": "use --output",
    "DATASETS.TEST": "use --data",
    "MODEL.WEIGHTS": "use tools/train_net.py",
    "MODEL.QUANT.ENABLED": "for full precision use tools/train_net.py",
    "MODEL.QUANT.WEIGHT_BITS": "use --bits",
    "MODEL.QUANT.ACT_BITS": "use --bits",
    "SOLVER.MAX_ITER": "use --iters",
    "SOLVER.OPTIMIZER": "use --optimizer",
}
"""Config keys that the demo sets from its own options -> what to use instead."""


@dataclass(frozen=True)
class DemoOptions:
    """The demo's command line.

    Attributes:
        config_file: YAML of the W4A4 run.
        weights: full-precision checkpoint; of no use with ``data``.
        output: folder of results and checkpoints.
        bits: of weights and activations, 1 to 8.
        optimizer: name in OPTIMIZER_REGISTRY.
        iterations: QAT iterations, >= 20.
        overrides: more ``KEY VALUE`` pairs of the config.
        export: whether the trained model is exported, too.
        data: entry of DATASETS.REGISTER for data other than the embedded.
        fp_config_file: with data, YAML of the full-precision run.
        fp_iterations: of that run, >= 20; 0: as its YAML says.
    """

    config_file: Path
    weights: Path
    output: Path
    bits: int = 4
    optimizer: str = "SGDT"
    iterations: int = 1000
    overrides: tuple[str, ...] = ()
    export: bool = False
    data: str | None = None
    fp_config_file: Path = Path()
    fp_iterations: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for an option that cannot be followed."""
        check("--bits", self.bits, 1 <= self.bits <= 8, "an integer from 1 to 8")
        check_among("--optimizer", self.optimizer, [name for name, _ in OPTIMIZER_REGISTRY])
        check("--iters", self.iterations, self.iterations >= 20, "at least 20")
        fits = self.fp_iterations == 0 or self.fp_iterations >= 20
        check("--fp-iters", self.fp_iterations, fits, "at least 20")
        for key in self.overrides[::2]:
            if key in OWN_KEYS:
                raise ValueError(f"{key}: the demo sets it itself; {OWN_KEYS[key]}")
        if self.export:
            check_packages()

    @property
    def run_name(self) -> str:
        """Folder name that tells runs with different options apart."""
        words = self.overrides
        if self.data is not None:
            words = (self.fp_name, *words)
        return f"w{self.bits}a{self.bits}_{self.optimizer}_{self.iterations}{_mark(words)}"

    @property
    def fp_name(self) -> str:
        """The same of the full-precision run, which runs of other bits share.

        Data that have been prepared anew make another run: this one may have seen test images.
        """
        entries = entries_from([str(self.data)])
        files = [Path(entry.json_file) for entry in entries]
        contents = [_digest(file) for file in files if file.is_file()]
        words = (str(self.data), *contents, self.fp_config_file.stem, *self.fp_overrides)
        return f"fp_{self.fp_iterations or 'default'}{_mark(words)}"

    @property
    def fp_overrides(self) -> tuple[str, ...]:
        """The overrides of full precision: those of the solver are of QAT."""
        pairs = zip(self.overrides[::2], self.overrides[1::2], strict=False)
        return tuple(word for pair in pairs if not pair[0].startswith("SOLVER.") for word in pair)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _mark(words: Iterable[str]) -> str:
    """Return a short end of a name that other words change; "" for none."""
    text = " ".join(words).encode()
    return f"_{hashlib.sha256(text).hexdigest()[:8]}" if text else ""


def build_config(options: DemoOptions) -> CfgNode:
    """Return the frozen config of the quantized run."""
    scheduled = OPTIMIZER_REGISTRY.get(options.optimizer).transition
    plain_name = options.optimizer.removesuffix("T") if scheduled else options.optimizer
    own = {
        "SOLVER.OPTIMIZER": options.optimizer,
        "SOLVER.BASE_LR": LEARNING_RATES.get(plain_name, 1e-3),
        "SOLVER.MAX_ITER": options.iterations,
        "SOLVER.CHECKPOINT_PERIOD": options.iterations // 10,  # what an interruption can cost
        "MODEL.QUANT.WEIGHT_BITS": options.bits,
        "MODEL.QUANT.ACT_BITS": options.bits,
        "MODEL.QUANT.LEARN_WEIGHT_SCALE": not scheduled,
        "OUTPUT_DIR": str(options.output / "runs" / options.run_name),
    }
    return _config(options, options.config_file, own, options.overrides)


def full_precision_config(options: DemoOptions) -> CfgNode:
    """Return the frozen config of the full-precision run on other data than the embedded."""
    own: dict[str, Any] = {"OUTPUT_DIR": str(options.output / "runs" / options.fp_name)}
    if options.fp_iterations:
        own["SOLVER.MAX_ITER"] = options.fp_iterations
        own["SOLVER.WARMUP_ITERS"] = options.fp_iterations // 10
        own["SOLVER.CHECKPOINT_PERIOD"] = options.fp_iterations // 10
    return _config(options, options.fp_config_file, own, options.fp_overrides)


def _config(
    options: DemoOptions, file: Path, own: Mapping[str, Any], overrides: Iterable[str]
) -> CfgNode:
    common: dict[str, Any] = {"MODEL.DEVICE": "cuda" if torch.cuda.is_available() else "cpu"}
    if options.data is not None:
        common["DATASETS.REGISTER"] = [options.data]
    pairs = [word for pair in {**common, **own}.items() for word in pair]
    cfg = load_config(file, [*pairs, *overrides])
    cfg.freeze()
    return cfg
