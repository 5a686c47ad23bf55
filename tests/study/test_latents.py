"""Latent weights of checkpoints against the trainer's own model."""

import pytest
import torch

from tr_det.classification.config.reading import load_config
from tr_det.classification.data.datasets import load_data
from tr_det.classification.engine.run import run
from tr_det.classification.models.build import build_network
from tr_det.core import quantized_layers
from tr_det.study.latents import StoredWeights, WeightQuantizer, first_and_last_checkpoint

TINY = """
model: {name: resnet_cifar, options: {depth: 8, width: 4}}
quant: {bits: W2A2, weight_quantizer: lsq}
solver: {batch_size: 32, iterations: 6, optimizer: SGDT}
run: {checkpoint_period: 2, keep_checkpoints: 0, device: cpu}
"""


def test_latents_are_those_of_the_model_at_the_first_and_last_checkpoint(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    config = load_config(tmp_path / "tiny.yaml", ["run.output_dir", str(tmp_path / "run")])
    run(config)
    paths = first_and_last_checkpoint(tmp_path / "run")
    assert [path.name for path in paths] == ["model_0000002.pth", "model_final.pth"]
    model = build_network(config, load_data(config.data), published=False)
    for path, updates in zip(paths, (2, 6), strict=True):
        stored = StoredWeights(path, WeightQuantizer("lsq", 2, {}))
        model.load_state_dict(torch.load(path, weights_only=True)["model"])
        layers = dict(quantized_layers(model))
        assert (stored.updates, stored.layers) == (updates, list(layers))
        other = StoredWeights(path, WeightQuantizer("lsq", 4, {}))  # but for some layers
        for name, layer in layers.items():
            expected = layer.weight_quantizer.normalized(layer.weight).flatten()
            for found in (stored, other):
                assert torch.equal(found.normalized(name), expected)
                assert found.transition_points(name) == [-1.5, -0.5, 0.5]


def test_one_checkpoint_is_there_once_and_weights_alone_are_refused(tmp_path):
    assert first_and_last_checkpoint(tmp_path) == []
    torch.save({"model": {}}, tmp_path / "model_final.pth")
    (path,) = first_and_last_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="not a checkpoint of a run's training"):
        StoredWeights(path, WeightQuantizer("lsq", 2, {}))
