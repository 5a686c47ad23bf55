import logging
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from tr_det.core import is_calibrated
from tr_det.detection import QuantCheckpointer, calibrate
from tr_det.detection.engine.trainer import QuantTrainer
from tr_det.runtime.checkpoint_keys import is_quantizer_state


@pytest.fixture
def full_precision(make_config, tmp_path):
    """Return the path of a full-precision checkpoint of the tiny model."""
    model = build_model(make_config("MODEL.QUANT.ENABLED", False))
    QuantCheckpointer(model, str(tmp_path)).save("fp")
    return str(tmp_path / "fp.pth")


@pytest.fixture
def quantized(make_config, full_precision, tmp_path):
    """Return the path of a calibrated W4A4 checkpoint."""
    cfg = make_config()
    model = build_model(cfg)
    QuantCheckpointer(model).load(full_precision)
    calibrate(model, QuantTrainer.build_train_loader(cfg), 1)
    QuantCheckpointer(model, str(tmp_path)).save("w4")
    return str(tmp_path / "w4.pth")


def test_a_full_precision_checkpoint_loads_by_name(make_config, full_precision, caplog):
    model = build_model(make_config())
    with caplog.at_level(logging.INFO):
        QuantCheckpointer(model).load(full_precision)
    saved = torch.load(full_precision, weights_only=True)["model"]
    own = model.state_dict()
    for key, value in saved.items():
        torch.testing.assert_close(own[key], value, rtol=0, atol=0)
    new = set(own) - set(saved)
    assert new
    assert all(is_quantizer_state(key) for key in new)
    assert f"{len(new)} new keys, all of them quantizer state" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_quantized_checkpoint_brings_its_scales(make_config, quantized):
    model = build_model(make_config())
    QuantCheckpointer(model).load(quantized)
    saved = torch.load(quantized, weights_only=True)["model"]
    for key, value in model.state_dict().items():
        torch.testing.assert_close(saved[key], value, rtol=0, atol=0)
    assert is_calibrated(model)


def test_another_architecture_is_refused_with_the_keys(make_config, full_precision):
    deeper = build_model(make_config("MODEL.RESNETS.DEPTH", 34))
    with pytest.raises(ValueError, match=r"does not fit the model: keys \d+ missing") as caught:
        QuantCheckpointer(deeper).load(full_precision)
    assert "res2.2.conv1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_quantized_checkpoint_is_refused_by_a_full_precision_model(make_config, quantized):
    model = build_model(make_config("MODEL.QUANT.ENABLED", False))
    with pytest.raises(ValueError, match="the checkpoint is quantized: set MODEL.QUANT.ENABLED"):
        QuantCheckpointer(model).load(quantized)


def test_partial_weights_load_when_allowed(make_config, full_precision):
    deeper = build_model(make_config("MODEL.RESNETS.DEPTH", 34))
    QuantCheckpointer(deeper, allow_partial=True).load(full_precision)
    saved = torch.load(full_precision, weights_only=True)["model"]
    key = "backbone.bottom_up.res2.0.conv1.weight"
    torch.testing.assert_close(deeper.state_dict()[key], saved[key], rtol=0, atol=0)


@pytest.mark.parametrize("content", [[1, 2], {"model": None}, {"model": [1]}], ids=str)
@pytest.mark.parametrize("name", ["odd.pth", "odd.pkl"])
def test_a_file_that_holds_no_model_is_named(make_config, tmp_path, name, content):
    if name.endswith("pth"):
        torch.save(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"{name}: not a checkpoint of a model"):
        QuantCheckpointer(build_model(make_config())).load(str(tmp_path / name))


def test_a_run_that_is_resumed_with_another_model_is_not_told_to_load_a_part(
    make_config, quantized
):
    shutil.copy(quantized, Path(quantized).parent / "model_final.pth")
    (Path(quantized).parent / "last_checkpoint").write_text("model_final.pth")
    model = build_model(make_config("MODEL.QUANT.SKIP", ["head.*"]))
    checkpointer = QuantCheckpointer(model, str(Path(quantized).parent))
    with pytest.raises(ValueError, match="resume with the config that the run was started with"):
        checkpointer.resume_or_load("", resume=True)


def test_partly_missing_quantizer_state_is_refused(make_config, quantized, tmp_path):
    saved = torch.load(quantized, weights_only=True)
    gone = [key for key in saved["model"] if "res2.0.conv1.input_quantizer" in key]
    for key in gone:
        del saved["model"][key]
    torch.save(saved, tmp_path / "holes.pth")
    with pytest.raises(ValueError, match=f"keys {len(gone)} missing .*res2.0.conv1.input_quant"):
        QuantCheckpointer(build_model(make_config())).load(str(tmp_path / "holes.pth"))


@pytest.mark.parametrize(("saved", "model"), [("BN", "FrozenBN"), ("FrozenBN", "BN")])
def test_frozen_and_trained_batch_norms_load_from_each_other(make_config, tmp_path, saved, model):
    norm = "MODEL.RESNETS.NORM"
    source = build_model(make_config("MODEL.QUANT.ENABLED", False, norm, saved))
    QuantCheckpointer(source, str(tmp_path)).save("source")
    QuantCheckpointer(build_model(make_config(norm, model))).load(str(tmp_path / "source.pth"))


def test_partial_weights_must_hold_most_of_the_backbone(make_config, tmp_path):
    partial = {"allow_partial": True}
    source = build_model(make_config("MODEL.QUANT.ENABLED", False))
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, tmp_path / "foreign.pth")
    bottom_up = {k: v for k, v in source.state_dict().items() if "bottom_up" in k}
    torch.save({"model": bottom_up}, tmp_path / "backbone.pth")
    few = {key: value for key, value in bottom_up.items() if "stem" in key or "res2" in key}
    torch.save({"model": few}, tmp_path / "few.pth")
    model = build_model(make_config())
    for name in ("foreign", "few"):
        with pytest.raises(
            ValueError, match=rf"{name}\.pth does not fit .* of the backbone's \d+ w"
        ):
            QuantCheckpointer(model, **partial).load(str(tmp_path / f"{name}.pth"))
    QuantCheckpointer(model, **partial).load(str(tmp_path / "backbone.pth"))
    weight = "backbone.bottom_up.res5.0.conv1.weight"
    torch.testing.assert_close(model.state_dict()[weight], bottom_up[weight], rtol=0, atol=0)


def test_partial_weights_of_another_width_are_refused(make_config, tmp_path):
    wide = make_config("MODEL.QUANT.ENABLED", False, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16)
    QuantCheckpointer(build_model(wide), str(tmp_path)).save("wide")
    with pytest.raises(ValueError, match=r"wide\.pth does not fit .* too many for MODEL\.ALLOW_PA"):
        QuantCheckpointer(build_model(make_config()), allow_partial=True).load(
            str(tmp_path / "wide.pth")
        )
