"""The classification configuration: frozen values, checked when they are made.

Each section is a dataclass whose comments say what its keys mean.
`tr_det.classification.config.reading` reads them from YAML and ``KEY VALUE`` pairs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from tr_det.classification.config.transition import TransitionConfig
from tr_det.core import ConfigError, QuantConfig
from tr_det.core.errors import check, check_among
from tr_det.core.nn.config import FULL_PRECISION
from tr_det.core.optim.optimizers import OPTIMIZERS
from tr_det.core.transition import SCHEDULES
from tr_det.export.metadata import INTERPOLATIONS
from tr_det.runtime.options import methods_from

LOSSES = ("cross_entropy", "distributional")
PRECISIONS = ("float32", "float16", "bfloat16")
LIBRARY = "library"
_BITS = re.compile(r"W(\d+)A(\d+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and where its weights come from."""

    # Name in tr_det.classification.models.registry.MODELS.
    name: str = "resnet_cifar"
    # Arguments of its builder, e.g. {depth: 20, width: 16}.
    options: dict[str, Any] = field(default_factory=dict)
    # First weights: a checkpoint, "library" for published ones (torchvision's, timm's; for
    # "resnet_cifar" akamaster's, which expect ImageNet's mean and deviation: give data.mean and
    # data.std for "cifar10"), "" for random ones or those of `pretraining`.
    weights: str = ""
    # Give the library's weights a new last layer, for data with other classes than theirs.
    new_last_layer: bool = False
    # A config whose result this run starts from; it is trained first where there is none. Relative
    # to the folder of the file that names it.
    pretraining: str = ""

    def __post_init__(self) -> None:
        """Check that the keys go together."""
        free = not (self.weights and self.pretraining)
        check("model.weights", self.weights, free, "'' where model.pretraining is given")
        fits = self.weights == LIBRARY or not self.new_last_layer
        check("model.new_last_layer", self.new_last_layer, fits, "false without weights=library")


@dataclass(frozen=True, kw_only=True)
class QuantSection:
    """Bits and quantizers; `models/registry.py` knows which layers have signed inputs."""

    # "FP", or W<weights>A<inputs> with 1 to 8 or 32: W2A2, W32A1.
    bits: str = "FP"
    # Quantizers: names of files in tr_det/core/quantizers.
    weight_quantizer: str = "fixed_grid"
    act_quantizer: str = "fixed_grid"
    # Their options: learn_scale, per_channel (weights), estimator (clip, round, ewgs, identity),
    # ewgs_factor, and those in the head of the quantizer's file; e.g. {per_channel: true}.
    weight_options: dict[str, Any] = field(default_factory=dict)
    act_options: dict[str, Any] = field(default_factory=dict)
    # Train the scales of weight quantizers: "auto" does so under plain optimizers, as the paper
    # does, and under TR scheduling where tr.scales is not "frozen".
    learn_weight_scale: bool | str = "auto"

    def __post_init__(self) -> None:
        """Check every key."""
        good = all(1 <= bits <= 8 or bits == FULL_PRECISION for bits in self._both() or (0,))
        check("quant.bits", self.bits, good, "FP or of the form W2A2, each number 1 to 8 or 32")
        known = isinstance(self.learn_weight_scale, bool) or self.learn_weight_scale == "auto"
        allowed = "true, false or 'auto'"
        check("quant.learn_weight_scale", self.learn_weight_scale, known, allowed)
        self.for_core()

    def for_core(self, learn_weight_scale: bool = False) -> QuantConfig:
        """Return the core's config.

        Raises:
            ConfigError: by the key in this section.
        """
        try:
            return QuantConfig(
                weight_bits=self.weight_bits,
                act_bits=self.act_bits,
                weight_quantizer=self.weight_quantizer,
                act_quantizer=self.act_quantizer,
                weight_options=self.weight_options,
                act_options=self.act_options,
                learn_weight_scale=learn_weight_scale,
            )
        except ConfigError as error:
            raise under_quant_key(error) from None

    def _both(self) -> tuple[int, ...]:
        if self.bits.upper() == "FP":
            return FULL_PRECISION, FULL_PRECISION
        match = _BITS.fullmatch(self.bits)
        return tuple(int(bits) for bits in match.groups()) if match else ()

    @property
    def weight_bits(self) -> int:
        """Bits of the weights, 32 for full precision."""
        return self._both()[0]

    @property
    def act_bits(self) -> int:
        """Bits of the layers' inputs, 32 for full precision."""
        return self._both()[1]

    @property
    def enabled(self) -> bool:
        """True if anything is quantized."""
        return self._both() != (FULL_PRECISION, FULL_PRECISION)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images."""

    # Name in tr_det.classification.data.datasets.DATASETS.
    name: str = "digits"
    # Folder of the dataset; the digits come with scikit-learn. For "folders" and "imagenet" it has
    # train/CLASS/*.jpg, and test/CLASS or val/CLASS; for "fashion_mnist" FashionMNIST/raw/*-ubyte,
    # or these files themselves, all of them plain or packed (.gz).
    root: str = "datasets"
    # Side of the training images in pixels; 0 takes the dataset's usual one, of "folders" the first
    # image's.
    image_size: int = 0
    # How images are scaled: bilinear or bicubic.
    interpolation: str = "bilinear"
    # Side of the central crop of a scaled ImageNet test image, relative to its side: 224 of 256.
    crop_ratio: float = 0.875
    # Mean and standard deviation of each channel, of pixels from 0 to 1; [] takes the dataset's
    # usual ones, of "folders" ImageNet's.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    # Share of the training images that are not trained on but tested on, in the place of the test
    # images, e.g. 0.2 to choose a learning rate by; the same ones for every seed.
    hold_out: float = 0.0
    # Download CIFAR or Fashion-MNIST if the folder does not have it.
    download: bool = False
    # Processes that read images; 0 reads in the training process. Changes no number.
    workers: int = 0

    def __post_init__(self) -> None:
        """Check every key."""
        check("data.image_size", self.image_size, 0 <= self.image_size <= 4096, "from 0 to 4096")
        check_among("data.interpolation", self.interpolation, INTERPOLATIONS)
        check("data.mean", self.mean, all(0 <= mean <= 1 for mean in self.mean), "in [0, 1]")
        fits = len(self.std) == len(self.mean) and all(0 < std <= 1 for std in self.std)
        check("data.std", self.std, fits, "in (0, 1], as many numbers as data.mean")
        check("data.hold_out", self.hold_out, 0 <= self.hold_out <= 0.5, "in [0, 0.5]")
        check("data.crop_ratio", self.crop_ratio, 0.1 <= self.crop_ratio <= 1, "in [0.1, 1]")
        # Each holds a hundred megabytes or more.
        check("data.workers", self.workers, 0 <= self.workers <= 128, "from 0 to 128")


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """Optimizer, its schedule and the loss (Table S8's columns)."""

    # SGD, Adam, NAdam, Adamax, AdamW, RMSprop, Adagrad; with a T at the end TR-scheduled.
    optimizer: str = "SGD"
    # Methods beside the optimizer: names of files in tr_det/core/methods with their options, e.g.
    # ["freezing threshold=0.02", "weight_average decay=0.999"].
    methods: tuple[str, ...] = ()
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 1e-4
    # Names of parameters without weight decay; * stands for anything.
    no_decay: tuple[str, ...] = ()
    # Learning rate of all scales, relative to lr (S4.1: a tenth).
    scale_lr_factor: float = 0.1
    # Learning rate of quantized weights under a plain optimizer, relative to lr. Under TR
    # scheduling, whose TALR is their rate, it must be 1.
    quant_weight_lr_factor: float = 1.0
    # Images per update, over all processes.
    batch_size: int = 256
    # Length of the run: epochs, or updates where iterations is above 0.
    epochs: int = 1
    iterations: int = 0
    # Shape of the learning rate, and of the target TR unless tr.schedule names another: cosine,
    # linear, step (divided by 5 after each quarter) or constant.
    schedule: str = "cosine"
    # Updates over which the learning rate rises from 0.
    warmup: int = 0
    # cross_entropy, or distributional (ReActNet): the divergence from model.teacher's output.
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    # Name of the teacher for the distributional loss, with published weights unless
    # teacher_weights names a checkpoint.
    teacher: str = ""
    teacher_weights: str = "library"
    # Largest norm of the gradient of all parameters; 0 does not clip.
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        """Check every key."""
        for key in ("methods", "betas", "no_decay"):  # YAML has lists
            object.__setattr__(self, key, tuple(getattr(self, key)))
        check_among("solver.optimizer", self.optimizer, OPTIMIZERS)
        check_among("solver.schedule", self.schedule, SCHEDULES)
        check_among("solver.loss", self.loss, LOSSES)
        methods_from(self.methods, "solver.methods")
        check("solver.lr", self.lr, 0 < self.lr < float("inf"), "positive and finite")
        factor, fits = self.quant_weight_lr_factor, not self.scheduled
        allowed = f"1 with solver.optimizer={self.optimizer}, whose TALR is their rate"
        check("solver.quant_weight_lr_factor", factor, fits or factor == 1, allowed)
        rates = ("scale_lr_factor", "quant_weight_lr_factor")
        for key in (*rates, "weight_decay", "clip_norm", "warmup", "iterations"):
            value = getattr(self, key)
            check(f"solver.{key}", value, 0 <= value < float("inf"), "finite and not negative")
        for key in ("momentum", "label_smoothing"):
            check(f"solver.{key}", getattr(self, key), 0 <= getattr(self, key) < 1, "in [0, 1)")
        pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check("solver.betas", self.betas, pair, "two numbers in [0, 1)")
        for key in ("batch_size", "epochs"):
            check(f"solver.{key}", getattr(self, key), getattr(self, key) >= 1, "at least 1")
        needed = (self.loss == "distributional") == bool(self.teacher)
        check(
            "solver.teacher",
            self.teacher,
            needed,
            "given with solver.loss=distributional, and with no other",
        )

    @property
    def scheduled(self) -> bool:
        """True under TR scheduling."""
        return OPTIMIZERS[self.optimizer].transition


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how a run happens."""

    # Folder of checkpoints, metrics and the table; "" means output/classification/<config>_<bits>.
    output_dir: str = ""
    # Of weights, data order and augmentation.
    seed: int = 0
    # "auto": a GPU if there is one.
    device: str = "auto"
    # Precision of the forward under autocast; float16 needs a GPU.
    precision: str = "float32"
    # Updates between two records of the metrics, evaluations and checkpoints; 0: at the end only.
    log_period: int = 20
    eval_period: int = 0
    checkpoint_period: int = 0
    # How many of the newest checkpoints to keep beside the final one; 0: all.
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        """Check every key."""
        check_among("run.precision", self.precision, PRECISIONS)
        check("run.seed", self.seed, 0 <= self.seed < 2**63, "from 0 to 2**63 - 1")
        check("run.log_period", self.log_period, self.log_period >= 1, "at least 1")
        for key in ("eval_period", "checkpoint_period", "keep_checkpoints"):
            check(f"run.{key}", getattr(self, key), getattr(self, key) >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The whole config of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantSection = field(default_factory=QuantSection)
    data: DataConfig = field(default_factory=DataConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    tr: TransitionConfig = field(default_factory=TransitionConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Check that the sections go together."""
        solver, bits = self.solver, self.quant.bits
        check(
            "solver.optimizer",
            solver.optimizer,
            not solver.scheduled or self.quant.weight_bits < FULL_PRECISION,
            f"{OPTIMIZERS[solver.optimizer].plain} with quant.bits={bits}: there are no codes "
            "whose transitions could be scheduled",
        )
        if solver.scheduled and self.tr.scales == "frozen":
            why = (
                f"with solver.optimizer={solver.optimizer}: a moving scale lets weights transit "
                "without being updated (tr.scales can tell the two apart)"
            )
            wanted = self.quant.learn_weight_scale
            fits = wanted is not True
            check("quant.learn_weight_scale", wanted, fits, f"false or 'auto' {why}")
            wanted = self.quant.weight_options.get("learn_scale", False)
            check("quant.weight_options.learn_scale", wanted, not wanted, f"false {why}")

    @property
    def learn_weight_scale(self) -> bool:
        """Whether the scales of weight quantizers are trained."""
        if isinstance(self.quant.learn_weight_scale, bool):
            return self.quant.learn_weight_scale
        return not self.solver.scheduled or self.tr.scales != "frozen"


def under_quant_key(error: ConfigError) -> ConfigError:
    """Return the core's error about quantizers under this config's key.

    >>> print(under_quant_key(ConfigError("weight_options.per_channel", 2, "True or False")))
    quant.weight_options.per_channel=2: must be True or False
    """
    names = {"weight_bits": "bits", "act_bits": "bits"}
    return error.renamed(f"quant.{names.get(error.key, error.key)}")
