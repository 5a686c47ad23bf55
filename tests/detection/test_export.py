import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from tr_det.core import quantized_layers
from tr_det.detection import QuantCheckpointer, QuantTrainer, calibrate
from tr_det.detection.export import DetectorNet, detector_subject
from tr_det.export.subject import write


@pytest.fixture
def subject(make_config, tiny, tmp_path):
    """Return ``subject(*overrides)``, of a calibrated detector."""

    def make(*overrides):
        cfg = make_config(*overrides)
        model = QuantTrainer.build_model(cfg)
        calibrate(model, QuantTrainer.build_train_loader(cfg), 1)
        QuantCheckpointer(model, str(tmp_path / "run")).save("model_final")
        (tmp_path / "run/config.yaml").write_text(cfg.dump())
        weights = ["MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth")]
        return detector_subject(tmp_path / "run/config.yaml", weights)

    return make


def test_classes_have_the_numbers_of_the_dataset(subject, tiny, tmp_path):
    metadata = MetadataCatalog.get(tiny.VAL)
    coco = json.loads(Path(metadata.json_file).read_text())
    for category in coco["categories"]:
        category["id"] = 90 - 7 * category["id"]
        category["name"] = f"digit {category['name']}"
    for annotation in coco["annotations"]:
        annotation["category_id"] = 90 - 7 * annotation["category_id"]
    (tmp_path / "own.json").write_text(json.dumps(coco))
    tiny.register("own_val", tmp_path / "own.json", metadata.image_root)
    found = subject("DATASETS.TEST", ("own_val",)).metadata
    by_id = {category["id"]: category["name"] for category in coco["categories"]}
    assert dict(zip(found.category_ids, found.classes)) == by_id
    assert list(found.category_ids) == sorted(by_id)


def test_images_are_what_the_detector_itself_works_on(subject):
    made = subject("INPUT.MIN_SIZE_TEST", 72, "INPUT.MAX_SIZE_TEST", 100)
    seen = []
    made.model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = list(made.images(2))
    cfg = made.metadata.config
    assert len(images) == 2
    loader = QuantTrainer.build_test_loader(_config(cfg), _config(cfg).DATASETS.TEST[0])
    for batch, image in zip(loader, images):
        with torch.no_grad():
            made.model(batch)
        assert torch.equal(seen.pop(), image)


def _config(text):
    from detectron2.config import get_cfg

    from tr_det.detection import add_tr_det_config

    cfg = get_cfg()
    add_tr_det_config(cfg)
    cfg.merge_from_other_cfg(cfg.load_cfg(text))
    return cfg


def test_a_file_takes_images_of_other_sizes(subject, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    made = subject()
    write(made, "integer", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == list(made.names)
    for shape in ((1, 3, 64, 64), (3, 3, 96, 160)):
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        found = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            expected = made.net(images)
        for own, theirs in zip(expected, found):
            assert own.shape == theirs.shape
            close = np.isclose(own.numpy(), theirs, atol=1e-4)
            assert close.mean() > 0.95  # a code of the stem's last bit may differ


def test_layers_and_names_are_those_of_the_detector(subject):
    made = subject()
    names = [name for name, _ in quantized_layers(made.net)]
    assert names == [name for name, _ in quantized_layers(made.model)]
    assert len(made.names) == len(made.net(made.example))


def test_another_architecture_is_refused():
    with pytest.raises(ValueError, match=r"MODEL.META_ARCHITECTURE=Linear: must be a RetinaNet"):
        DetectorNet(torch.nn.Linear(1, 1))
