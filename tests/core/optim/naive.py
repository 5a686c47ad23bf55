"""Algorithm 1 of the TR paper, written out one number at a time: the oracle of the optimizer tests.

Nothing here is fast, vectorised or shared with ``tr_det``: Python floats (IEEE double), one loop
per element, one line per line of the papers. NumPy only carries shapes in and out.

Sources
    TR       Scheduling Weight Transitions for QAT: Algorithm 1, Eqs. 5, 10, 11, 12, 13, S4.1.
    SGD      Sutskever et al. 2013 in the convention with the learning rate outside of the buffer
             (``b = mu b + (1 - dampening) g``, first buffer = first gradient; Nesterov:
             ``g + mu b``).
    Adam     Kingma and Ba 2015, Algorithm 1; weight decay as an L2 term of the gradient.
    AdamW    Loshchilov and Hutter 2019, Algorithm 2; the decay is outside of the direction.

Symbols: ``k`` transition rate of one update, ``K`` running TR, ``U`` TALR, ``R`` target TR,
``eta`` the gain of the controller, ``m`` the TR momentum, ``T`` the number of updates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


def grid(bits: int) -> tuple[int, int, int]:
    """Return (alpha, beta, gamma) of Eq. 13 for signed numbers."""
    if bits == 1:
        return -1, 1, 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 2 ** (bits - 1)


def code(x: float, scale: float, bits: int) -> int:
    """Return the integer code of one number (Eqs. S4, S5; sign for binary weights, sign(0) = 1)."""
    alpha, beta, gamma = grid(bits)
    normalised = min(max(gamma * x / scale, alpha), beta)
    if bits == 1:
        return 1 if normalised >= 0 else -1
    return round(normalised)  # Python rounds half to even


def distance_to_transition(x: float, scale: float, bits: int) -> float:
    """Return how far a signed weight is from its nearest transition point."""
    if bits == 1:
        return abs(x)
    alpha, beta, gamma = grid(bits)
    points = [(level + 0.5) * scale / gamma for level in range(alpha, beta)]
    return min(abs(x - point) for point in points)


def cosine_target(
    t: int, total_steps: int, bits: int, tr_factor: float, tr_final: float = 0.0
) -> float:
    """Return R_t: from ``tr_factor * sqrt(bits)`` at t = 0 to ``tr_final`` at t = total_steps."""
    start = tr_factor * math.sqrt(bits)
    return tr_final + (start - tr_final) * 0.5 * (1.0 + math.cos(math.pi * t / total_steps))


@dataclass
class NaiveSGD:
    """Direction of SGD."""

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    maximize: bool = False

    def direction(self, state: dict, w: float, g: float) -> float:
        """Return g_t of Eq. 12 for one weight and advance that weight's state."""
        if self.maximize:
            g = -g
        g = g + self.weight_decay * w
        if self.momentum == 0.0:
            return g
        if "buffer" not in state:
            state["buffer"] = g
        else:
            state["buffer"] = self.momentum * state["buffer"] + (1.0 - self.dampening) * g
        if self.nesterov:
            return g + self.momentum * state["buffer"]
        return state["buffer"]

    def decoupled_decay(self) -> float:
        """Return the part of the decay that is not in the direction."""
        return 0.0


@dataclass
class NaiveAdam:
    """Direction of Adam; ``decoupled=True`` is AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    maximize: bool = False
    decoupled: bool = False

    def direction(self, state: dict, w: float, g: float) -> float:
        """Return g_t of Eq. 12 for one weight and advance that weight's state."""
        beta1, beta2 = self.betas
        if self.maximize:
            g = -g
        if not self.decoupled:
            g = g + self.weight_decay * w
        state["t"] = state.get("t", 0) + 1
        state["m"] = beta1 * state.get("m", 0.0) + (1.0 - beta1) * g
        state["v"] = beta2 * state.get("v", 0.0) + (1.0 - beta2) * g * g
        m_hat = state["m"] / (1.0 - beta1 ** state["t"])
        v_hat = state["v"] / (1.0 - beta2 ** state["t"])
        return m_hat / (math.sqrt(v_hat) + self.eps)

    def decoupled_decay(self) -> float:
        """Return the part of the decay that is not in the direction."""
        return self.weight_decay if self.decoupled else 0.0


@dataclass
class NaiveLayer:
    """One quantized weight tensor with its own controller.

    Attributes:
        weight: the latent weights, any shape, float64.
        scale: the frozen scale of the quantizer.
        bits: 1 to 8.
        talr, running, target: U, K and R of the last update.
        rate: k of the last update.
        codes: codes of the last update (those of the weights before it).
        margin: smallest distance of any weight, at any update, to a transition point.
    """

    weight: np.ndarray
    scale: float
    bits: int
    talr: float = math.nan
    running: float = 0.0
    target: float = math.nan
    rate: float = 0.0
    codes: list[int] | None = None
    margin: float = math.inf
    states: list[dict] = field(default_factory=list)


class NaiveTR:
    """Algorithm 1 over a list of layers.

    Args:
        layers: the quantized weights.
        rule: what gives the direction g_t.
        lr: the base learning rate: U_{-1}, and the gain when ``tr_gain`` is None.
        total_steps: T.
        tr_factor: lambda of S4.1.
        tr_momentum: m of Eq. 10.
        tr_gain: eta of Eq. 11.
        tr_decay: "talr" or "lr": what multiplies a decoupled decay.
        tr_final: the target TR at the end.
    """

    def __init__(
        self,
        layers: list[NaiveLayer],
        rule: NaiveSGD | NaiveAdam,
        *,
        lr: float,
        total_steps: int,
        tr_factor: float,
        tr_momentum: float,
        tr_gain: float | None = None,
        tr_decay: str = "talr",
        tr_final: float = 0.0,
    ) -> None:
        """Put every controller at U = lr, K = 0."""
        self.layers = layers
        self.rule = rule
        self.lr = lr
        self.eta = lr if tr_gain is None else tr_gain
        self.total_steps = total_steps
        self.tr_factor = tr_factor
        self.m = tr_momentum
        self.decay = tr_decay
        self.tr_final = tr_final
        self.t = 0
        for layer in layers:
            layer.talr = lr
            layer.states = [{} for _ in range(layer.weight.size)]

    def observe(self, layer: NaiveLayer) -> None:
        """Lines 2 to 4 of Algorithm 1 for one layer."""
        flat = layer.weight.reshape(-1).tolist()
        codes = [code(x, layer.scale, layer.bits) for x in flat]
        if layer.codes is None:
            k = 0.0
        else:
            k = sum(new != old for new, old in zip(codes, layer.codes, strict=True)) / len(codes)
        layer.codes = codes
        layer.rate = k
        layer.running = self.m * layer.running + (1.0 - self.m) * k
        layer.target = cosine_target(
            self.t, self.total_steps, layer.bits, self.tr_factor, self.tr_final
        )
        layer.talr = max(0.0, layer.talr + self.eta * (layer.target - layer.running))
        nearest = min(distance_to_transition(x, layer.scale, layer.bits) for x in flat)
        layer.margin = min(layer.margin, nearest)

    def update(self, layer: NaiveLayer, grad: np.ndarray, current_lr: float) -> None:
        """Line 5 of Algorithm 1 for one layer, with the TALR that the layer shows."""
        flat = layer.weight.reshape(-1).tolist()
        grads = grad.reshape(-1).tolist()
        decay_lr = layer.talr if self.decay == "talr" else current_lr
        new = []
        for w, g, state in zip(flat, grads, layer.states, strict=True):
            direction = self.rule.direction(state, w, g)
            new.append(w - layer.talr * direction - decay_lr * self.rule.decoupled_decay() * w)
        layer.weight = np.array(new, dtype=np.float64).reshape(layer.weight.shape)

    def step(
        self,
        grads: list[np.ndarray],
        current_lr: float | None = None,
        forced: list[tuple[float, float]] | None = None,
    ) -> None:
        """Do one update.

        Args:
            grads: one array per layer.
            current_lr: the scheduled LR of this update, used by ``decay="lr"`` alone.
            forced: (U, K) per layer to use instead of the ones computed here, so that the weights
                can be compared without the rounding of a single precision controller.
        """
        current_lr = self.lr if current_lr is None else current_lr
        for index, (layer, grad) in enumerate(zip(self.layers, grads, strict=True)):
            self.observe(layer)
            if forced is not None:
                layer.talr, layer.running = forced[index]
            self.update(layer, grad, current_lr)
        self.t += 1
