import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import transforms
from detectron2.data.detection_utils import read_image
from onnx import TensorProto, helper
from PIL import Image

from tests.export.detector_case import (
    arrays,
    build_retinanet,
    class_by_class,
    make_metadata,
    random_outputs,
    write_model,
    write_onnx,
)
from tr_det.export.metadata import InputSpec
from tr_det.export.predictor import Classification, Detections, Predictor


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Return an exported detector, its metadata and a picture."""
    folder, metadata = tmp_path_factory.mktemp("model"), make_metadata()
    write_onnx(folder / "model.onnx", metadata)
    coarse = np.random.default_rng(1).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((203, 131), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "a.jpg", exif=exif)
    return folder / "model.onnx", metadata, folder / "a.jpg"


def by_detectron2(metadata, path):
    """Do what DefaultPredictor does; it builds its model from a config, and wants a checkpoint."""
    image = read_image(path, format="BGR")
    edges = metadata.input.resize
    augmentation = transforms.ResizeShortestEdge([edges.short] * 2, edges.long)
    resized = augmentation.get_transform(image).apply_image(image)
    tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
    height, width = image.shape[:2]
    with torch.no_grad():
        (found,) = build_retinanet(metadata)([{"image": tensor, "height": height, "width": width}])
    return arrays(found["instances"])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_detections_are_those_of_detectron2s_predictor(case, runtime, monkeypatch):
    pytest.importorskip(runtime)
    class_by_class(monkeypatch)
    model, metadata, path = case
    boxes, scores, labels = by_detectron2(metadata, path)
    assert len(boxes) > 10
    predictor = Predictor(model, runtime, threads=1)
    with Image.open(path) as image:
        results = [predictor(given) for given in (path, str(path), image)]
    for found in results:
        np.testing.assert_allclose(found.boxes, boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
        np.testing.assert_array_equal(found.labels, labels)
        assert found.names == tuple("abcde"[label] for label in labels)
        assert found.image_size == (203, 131)
    coco = found.to_coco(7)
    assert len(json.loads(json.dumps(coco))) == len(boxes)
    assert {entry["image_id"] for entry in coco} == {7}
    assert [entry["category_id"] for entry in coco] == [(1, 2, 3, 5, 8)[i] for i in labels]
    sizes = boxes[:, 2:] - boxes[:, :2]
    expected = np.concatenate([boxes[:, :2], sizes], axis=1)
    np.testing.assert_allclose([entry["bbox"] for entry in coco], expected, rtol=0, atol=1e-3)


def test_a_threshold_takes_the_place_of_the_models(case):
    model, _, path = case
    every, some = Predictor(model)(path), Predictor(model, score_threshold=0.6)(path)
    assert 0 < len(some) == (every.scores > 0.6).sum() < len(every)
    np.testing.assert_array_equal(some.boxes, every.boxes[: len(some)])


def test_any_backend_and_any_kind_of_image(case):
    model, metadata, path = case
    expected = Predictor(model)(path)

    class Backend:
        def run(self, inputs):
            (name,) = inputs
            assert name == "images"
            features = build_retinanet(metadata).backbone(torch.tensor(inputs["images"]))
            outputs = build_retinanet(metadata).head(list(features.values()))
            values = [x.numpy() for kind in outputs for x in kind]
            return dict(zip(metadata.detector.outputs, values, strict=True))

    for given in (metadata, metadata.to_dict()):
        predictor = Predictor.of(Backend(), given)
        upright = read_image(path, format="RGB")
        found = predictor(upright)
        assert isinstance(found, Detections)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=1e-3)


def test_a_classifier_gives_probabilities(tmp_path):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    metadata = dataclasses.replace(
        make_metadata(),
        task="classification",
        detector=None,
        classes=("red", "green", "blue"),
        category_ids=(),
        input=InputSpec(3, "RGB", 1 / 255, mean, std, 1, None),
    )
    node = helper.make_node("GlobalAveragePool", ["images"], ["means"])
    flat = helper.make_node("Flatten", ["means"], ["logits"])
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, "H", "W"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph([node, flat], "classifier", [images], [logits])
    write_model(tmp_path / "model.onnx", graph, metadata)
    found = Predictor(tmp_path / "model.onnx")(Image.new("RGB", (9, 7), (40, 200, 90)))
    assert isinstance(found, Classification)
    values = (torch.tensor([40, 200, 90]) / 255 - torch.tensor(mean)) / torch.tensor(std)
    np.testing.assert_allclose(found.probabilities, values.softmax(0).numpy(), rtol=1e-5)
    assert [name for name, _ in found.best(2)] == ["green", "blue"]
    assert found.best(2)[0][1] == pytest.approx(values.softmax(0)[1].item(), rel=1e-5)


def test_outputs_that_the_metadata_do_not_fit_are_named(case):
    _, metadata, path = case
    found = random_outputs(0, padded=(64, 96))
    backend = SimpleNamespace(run=lambda inputs: found)
    for classes in (4, 6):  # of 5
        names = tuple("abcdef"[:classes])
        other = dataclasses.replace(metadata, classes=names, category_ids=())
        with pytest.raises(ValueError, match=rf"metadata.classes: lists {classes}, "):
            Predictor.of(backend, other)(path)
    classifier = dataclasses.replace(metadata, task="classification", detector=None)
    found = {"logits": np.zeros((1, 7), np.float32)}
    with pytest.raises(ValueError, match=r"metadata.classes: lists 5, .*\[1, 7\]"):
        Predictor.of(backend, classifier)(path)
    found = {"scores": np.zeros((1, 5), np.float32)}
    with pytest.raises(ValueError, match=r"no output 'logits'"):
        Predictor.of(backend, classifier)(path)


def test_bad_models_are_one_line(tmp_path, case):
    model, metadata, _ = case
    (tmp_path / "text.onnx").write_text("no model")
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(ValueError, match=r"text.onnx: \w+ cannot read it"):
            Predictor(tmp_path / "text.onnx", runtime)
    with pytest.raises(ValueError, match=r"lost.onnx: no such file"):
        Predictor(tmp_path / "lost.onnx")
    write_onnx(tmp_path / "plain.onnx", None)
    with pytest.raises(ValueError, match=r"plain.onnx: has no 'tr_det' metadata"):
        Predictor(tmp_path / "plain.onnx")
    write_onnx(tmp_path / "features.onnx", dataclasses.replace(metadata, task="features"))
    with pytest.raises(ValueError, match=r"features.onnx: metadata.task='features'"):
        Predictor(tmp_path / "features.onnx")
    broken = SimpleNamespace(to_json=lambda: "{oops")
    write_onnx(tmp_path / "broken.onnx", broken)
    wrong = SimpleNamespace(to_json=lambda: metadata.to_json().replace('"BGR"', '"YUV"'))
    write_onnx(tmp_path / "wrong.onnx", wrong)
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(ValueError, match=r"broken.onnx: metadata: is not JSON"):
            Predictor(tmp_path / "broken.onnx", runtime)
        with pytest.raises(ValueError, match=r"wrong.onnx: metadata.input.color='YUV'"):
            Predictor(tmp_path / "wrong.onnx", runtime)
    with pytest.raises(ValueError, match=r"score_threshold=1.5: must be"):
        Predictor(model, score_threshold=1.5)


def test_neither_torch_nor_detectron2_is_needed(case):
    model, _, path = case
    code = f"""
import sys
for name in ("torch", "torchvision", "detectron2", "fvcore", "onnx", "scipy", "cv2", "tqdm"):
    sys.modules[name] = None  # an import of it fails
from tr_det.export.predictor import Predictor
print(len(Predictor({str(model)!r})({str(path)!r})))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) == len(Predictor(model)(path))
