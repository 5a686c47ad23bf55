"""Detectron2's own export: TracingAdapter and torch.jit.trace, as its export_model.py has it."""

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model

from tr_det.core import set_scales


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:__floordiv__ is deprecated:UserWarning")
def test_a_saved_trace_finds_what_the_model_finds(make_config, tmp_path):
    torch.manual_seed(0)
    model = build_model(
        make_config("MODEL.DEVICE", "cpu", "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    )
    inputs = [{"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}]
    model.eval()
    set_scales(model, lambda: model(inputs))

    adapter = TracingAdapter(model, inputs)
    traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    torch.jit.save(traced, tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for given in (inputs[0]["image"], image):
            expected = model([{"image": given}])[0]["instances"]
            found = adapter.outputs_schema(loaded(given))[0]["instances"]
            assert len(expected) > 0
            assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert torch.equal(found.scores, expected.scores)
            assert torch.equal(found.pred_classes, expected.pred_classes)
