"""What a study must know of detection's and of classification's runs: their tools and keys."""

from __future__ import annotations

import ast
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tr_det.core.errors import check
from tr_det.runtime.configs import config_files, leaves, overlaid
from tr_det.runtime.results import Results

Tree = dict[str, Any]
"""A config as nested mappings of plain values."""


class Side(ABC):
    """One of the two kinds of runs."""

    tool: str  # file in tools/
    folder: str  # key of the run's folder
    seed: str  # key of its seed
    free: tuple[str, ...]  # keys that change no number: they do not tell cells apart
    keep: str  # key of how many numbered checkpoints stay

    @abstractmethod
    def written(self, path: Path) -> Tree:
        """Return what a config file and those that it builds on set."""

    @abstractmethod
    def load(self, path: Path, pairs: Sequence[str]) -> Tree:
        """Return the whole config of a run; a wrong one raises ValueError."""

    @abstractmethod
    def word(self, value: Any) -> str:
        """Return a setting's value as a word of the command line."""

    @abstractmethod
    def length(self, config: Tree) -> tuple[float, str]:
        """Return how long a run is, and the unit: "updates" or "epochs"."""

    @abstractmethod
    def check_data(self, config: Tree, is_compared: bool) -> None:
        """Raise ConfigError if a run names data that nobody knows.

        Args:
            config: of the run.
            is_compared: also raise unless it has one test set, which the metric is of.
        """

    @abstractmethod
    def check_off_test(self, config: Tree, own: Tree) -> None:
        """Raise ConfigError if a search's run uses what it may not.

        Args:
            config: of the search's run.
            own: of the study's own run.
        """

    @abstractmethod
    def check_start(self, start: Tree, config: Tree, own: Tree) -> None:
        """Raise ConfigError if a run that a search's run starts from has seen what it may not.

        Args:
            start: config of that run.
            config: of the search's run.
            own: of the study's own run.
        """

    @abstractmethod
    def processes(self, gpus: int) -> tuple[list[str], list[str]]:
        """Return the words before and after the tool that start a run on several GPUs."""

    def value(self, results: Results, metric: str) -> float:
        """Return the value of a metric, at "/" further inside.

        Raises:
            ValueError: the results have no such metric.
        """
        found: Any = results["metrics"]
        for part in metric.split("/"):
            if not (isinstance(found, dict) and part in found):
                have = ", ".join(sorted(key for key, _ in leaves(results["metrics"], "/")))
                raise ValueError(f"METRIC={metric!r}: must be one of what runs measure: {have}")
            found = found[part]
        if found is None and results["metrics"][metric.partition("/")[0]].get("AP") is not None:
            allowed = "a metric of objects that the test set has"
            raise ValueError(f"METRIC={metric!r}: must be {allowed}; others were detected")
        # Where nothing was detected COCO's evaluation gives none.
        return 0.0 if found is None else float(found)

    def pairs(self, settings: Mapping[str, Any]) -> list[str]:
        """Return ``KEY VALUE`` words of a command line."""
        return [word for key, value in settings.items() for word in (key, self.word(value))]


class Detection(Side):
    """Runs of tools/train_net.py."""

    tool, folder, seed = "train_net.py", "OUTPUT_DIR", "SEED"
    keep = "SOLVER.KEEP_CHECKPOINTS"
    free = (
        *("OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "VERSION", "TEST.EVAL_PERIOD"),
        *("SOLVER.CHECKPOINT_PERIOD", keep),
    )

    def written(self, path: Path) -> Tree:
        """Return what a config file and those that it builds on set."""
        from tr_det.detection.config.reading import read_tree

        return read_tree(path)

    def load(self, path: Path, pairs: Sequence[str]) -> Tree:
        """Return the whole config of a run."""
        from tr_det.detection.config.reading import load_config

        # The machine that starts runs need not have their GPU.
        return _tree(load_config(path, [*pairs, "MODEL.DEVICE", "cpu"]))

    def word(self, value: Any) -> str:
        """Return a setting's value as a word of the command line."""
        return str(value)  # Detectron2 reads Python's literals, other words as texts

    def length(self, config: Tree) -> tuple[float, str]:
        """Return how long a run is, and the unit."""
        return float(config["SOLVER"]["MAX_ITER"]), "updates"

    def check_data(self, config: Tree, is_compared: bool) -> None:
        """Raise ConfigError if a run names data that nobody knows."""
        from tr_det.detection.data.register import check_registered

        datasets = config["DATASETS"]
        for part in ("TRAIN", "TEST"):
            check_registered(f"DATASETS.{part}", datasets[part], datasets["REGISTER"])
        tests = datasets["TEST"]
        fits = len(tests) == 1 or not is_compared
        check("DATASETS.TEST", tests, fits, "one dataset, by which runs are compared")

    def check_off_test(self, config: Tree, own: Tree) -> None:
        """Raise ConfigError if a search's run uses what it may not, by the images' files."""
        self._check_apart("SEARCH: DATASETS.TEST", config["DATASETS"]["TEST"], own)
        self.check_start(config, config, own)

    def check_start(self, start: Tree, config: Tree, own: Tree) -> None:
        """Raise ConfigError if a run has been trained on what it may not, by the images' files."""
        for other in (own, config):
            self._check_apart("SEARCH: DATASETS.TRAIN", start["DATASETS"]["TRAIN"], other)

    def _check_apart(self, key: str, names: Sequence[str], config: Tree) -> None:
        from tr_det.detection.data.register import share_images

        test, lines = config["DATASETS"]["TEST"], config["DATASETS"]["REGISTER"]
        check(key, names, not share_images(names, test, lines), f"other images than {test}")

    def processes(self, gpus: int) -> tuple[list[str], list[str]]:
        """Return the words before and after the tool."""
        return [], ["--num-gpus", str(gpus)]


class Classification(Side):
    """Runs of tools/train_classifier.py."""

    tool, folder, seed = "train_classifier.py", "run.output_dir", "run.seed"
    keep = "run.keep_checkpoints"

    @property
    def free(self) -> tuple[str, ...]:  # type: ignore[override]
        """Keys that change no number."""
        from tr_det.classification.engine.run import FREE

        # The trainer lets data.root differ when it resumes; rows may differ by it. How often a run
        # is logged decides what can be read of it.
        return tuple(key for key in FREE if key not in ("data.root", "run.log_period"))

    def written(self, path: Path) -> Tree:
        """Return what a config file and those that it builds on set."""
        tree: Tree = {}
        for _, own in reversed([*config_files(path)]):
            tree = overlaid(own, tree)
        return tree

    def load(self, path: Path, pairs: Sequence[str]) -> Tree:
        """Return the whole config of a run."""
        from tr_det.classification.config.reading import load_config, to_tree

        tree = to_tree(load_config(path, pairs))
        start = tree["model"]["pretraining"]
        check("model.pretraining", start, not start, "'' in a study, which names such runs in RUNS")
        return tree

    def word(self, value: Any) -> str:
        """Return a setting's value as a word of the command line."""
        return json.dumps(value)

    def length(self, config: Tree) -> tuple[float, str]:
        """Return how long a run is, and the unit."""
        solver = config["solver"]
        updates, epochs = solver["iterations"], solver["epochs"]
        return (float(updates), "updates") if updates else (float(epochs), "epochs")

    def check_data(self, config: Tree, is_compared: bool) -> None:
        """Do nothing: every name is known, and every run has one test set."""

    def check_off_test(self, config: Tree, own: Tree) -> None:
        """Raise ConfigError if a search's run is evaluated on what the study's own is."""
        share, tested = config["data"]["hold_out"], own["data"]["hold_out"]
        check("SEARCH: data.hold_out", share, share > 0, "above 0, the share to choose by")
        # A larger share holds out the images of a smaller one, too.
        allowed = "0 where rows are searched for, which is judged by such images"
        check("data.hold_out", tested, tested == 0, allowed)

    def check_start(self, start: Tree, config: Tree, own: Tree) -> None:
        """Raise ConfigError if a run has been trained on the images to choose by."""
        share, kept = config["data"]["hold_out"], start["data"]["hold_out"]
        allowed = f"at least {share}, as what a search's runs start from must not have seen them"
        check("data.hold_out", kept, kept >= share, allowed)

    def processes(self, gpus: int) -> tuple[list[str], list[str]]:
        """Return the words before and after the tool."""
        return ["-m", "torch.distributed.run", f"--nproc-per-node={gpus}", "--standalone"], []


SIDES: dict[str, Side] = {"detection": Detection(), "classification": Classification()}


def plain(value: Any) -> Any:
    """Return a value in the one form that tells cells apart: numbers, lists, texts.

    >>> plain("(1, 2e-3)"), plain([1.0, "x"]), plain(True)
    ([1.0, 0.002], [1.0, 'x'], True)
    """
    if isinstance(value, str):
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
        return value if isinstance(read, str) else plain(read)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else value


def _tree(node: Mapping[str, Any]) -> Tree:
    return {key: _tree(value) if isinstance(value, dict) else value for key, value in node.items()}
