"""The report of `quantize_model`, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from tr_det.core.nn.config import FULL_PRECISION


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Attributes:
        name: full dotted name.
        kind: class name before the conversion.
        num_weights: elements of its weight.
        weight_bits: 1 to 8, or 32.
        act_bits: of its input, 1 to 8, or 32.
        signed_input: whether the input's grid is signed; None: not found yet.
        sign_given: whether the config gives the sign; otherwise it is found by looking at data.
        output_scale: whether it has a learnable output scale.
        reason: why it was left alone; empty if it was quantized.
        tied_to: the earlier layer with the same weight, or empty.
    """

    name: str
    kind: str
    num_weights: int
    weight_bits: int = 32
    act_bits: int = 32
    signed_input: bool | None = False
    sign_given: bool = True
    output_scale: bool = False
    reason: str = ""
    tied_to: str = ""

    def sign(self) -> str:
        """Return the sign of the input's grid, and who said so, as text."""
        if self.act_bits == FULL_PRECISION:
            return "input in full precision"
        if self.signed_input is None:
            return "input's sign to be found"
        kind = "signed" if self.signed_input else "unsigned"
        return f"{kind} input, {'given' if self.sign_given else 'found'}"


@dataclass(frozen=True)
class QuantReport:
    """All layers with a weight, in the model's order, and the model's other parameters.

    Attributes:
        layers: one entry per layer.
        other_parameters: number of the other parameters (biases, norms), always 32 bits.
    """

    layers: tuple[LayerReport, ...]
    other_parameters: int = 0

    @property
    def quantized(self) -> tuple[LayerReport, ...]:
        """Layers that were quantized."""
        return tuple(layer for layer in self.layers if not layer.reason)

    @property
    def skipped(self) -> tuple[LayerReport, ...]:
        """Layers that were left alone, each with its reason."""
        return tuple(layer for layer in self.layers if layer.reason)

    def storage_mb(self, quantized: bool = True) -> float:
        """Return the storage of all parameters in MB (10^6 bytes); a shared weight counts once.

        Args:
            quantized: count quantized weights at their bit-width; otherwise everything at 32 bits.
        """
        bits = sum(
            layer.num_weights * (layer.weight_bits if quantized else 32)
            for layer in self.layers
            if not layer.tied_to
        )
        return (bits + 32 * self.other_parameters) / 8e6

    def table(self) -> str:
        """Return the report as text, one line per layer."""
        width = max((len(layer.name) for layer in self.layers), default=5)
        lines = [f"{'layer':<{width}}  {'weights':>9}  W/A bits"]
        for layer in self.layers:
            if layer.reason:
                what = f"left alone: {layer.reason}"
            else:
                scale = ", output scale" if layer.output_scale else ""
                what = f"W{layer.weight_bits}A{layer.act_bits}  {layer.sign()}{scale}"
            lines.append(f"{layer.name:<{width}}  {layer.num_weights:>9,}  {what}")
        lines.append(
            f"{len(self.quantized)} of {len(self.layers)} layers quantized; storage "
            f"{self.storage_mb(False):.2f} MB -> {self.storage_mb():.2f} MB"
        )
        return "\n".join(lines)
