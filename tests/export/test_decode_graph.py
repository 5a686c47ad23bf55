import dataclasses

import numpy as np
import pytest

from tests.export.detector_case import make_metadata, random_outputs
from tr_det.export.decode import detect
from tr_det.export.decode_graph import decode_graph
from tr_det.export.metadata import read
from tr_det.export.runtimes import METADATA_KEY, open_runtime


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("offset", "changes"),
    [
        (0.0, {}),
        (0.5, {"score_threshold": 0.5, "nms_threshold": 0.3}),
        (0.0, {"candidates_per_level": 40, "detections_per_image": 300}),
        (0.0, {"score_threshold": 0.0, "detections_per_image": 7, "scale_clamp": 0.2}),
        (0.0, {"score_threshold": 0.999, "detections_per_image": 9}),
    ],
)
def test_detections_are_those_of_decode(name, offset, changes):
    pytest.importorskip(name)
    metadata = make_metadata(offset, **changes)
    detector = metadata.detector
    runtime = open_runtime(decode_graph(metadata).SerializeToString(), name, threads=1)
    # Batches and sizes change without another graph.
    for seed, sizes, padded in (
        (0, [(70, 128), (96, 61)], (96, 128)),
        (1, [(33, 32)], (64, 32)),
        (2, [(96, 96), (90, 96), (96, 95)], (96, 96)),
    ):
        outputs = random_outputs(seed, len(sizes), padded)
        found = runtime.run({**outputs, "image_size": np.array(sizes, dtype=np.int64)})
        shapes = {key: value.shape for key, value in found.items()}
        most = detector.detections_per_image
        assert shapes == {
            "boxes": (len(sizes), most, 4),
            "scores": (len(sizes), most),
            "labels": (len(sizes), most),
        }
        for index, size in enumerate(sizes):
            expected = detect(outputs, detector, size, size, index)
            count = len(expected)
            boxes, scores, labels = (found[key][index] for key in ("boxes", "scores", "labels"))
            np.testing.assert_array_equal(labels[:count], expected.labels)
            np.testing.assert_allclose(scores[:count], expected.scores, rtol=2e-6)
            np.testing.assert_allclose(boxes[:count], expected.boxes, rtol=0, atol=2e-4)
            assert (labels[count:] == -1).all()
            assert (scores[count:] == 0).all()
            assert (boxes[count:] == 0).all()
            assert labels.dtype == np.int64


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.3])
def test_an_overlap_of_the_threshold_itself_falls_on_the_same_side(name, threshold):
    pytest.importorskip(name)
    heights = (10.0, threshold * 10, 4.0, 20.0, 14.0, 6.0)
    anchors = (tuple((0.0, 0.0, 10.0, height) for height in heights),) * 3
    metadata = make_metadata(cell_anchors=anchors, nms_threshold=threshold)
    runtime = open_runtime(decode_graph(metadata).SerializeToString(), name, threads=1)
    outputs = random_outputs(5)
    for level in metadata.detector.levels:
        outputs[f"deltas.{level}"][:] = 0
    found = runtime.run({**outputs, "image_size": np.array([[96, 128]])})
    expected = detect(outputs, metadata.detector, (96, 128), (96, 128))
    np.testing.assert_array_equal(found["labels"][0], expected.labels)
    np.testing.assert_allclose(found["boxes"][0], expected.boxes, rtol=0, atol=1e-4)


def test_equal_scores_keep_their_order():
    metadata = make_metadata()
    runtime = open_runtime(decode_graph(metadata).SerializeToString(), threads=1)
    outputs = {name: np.round(values) for name, values in random_outputs(6).items()}
    found = runtime.run({**outputs, "image_size": np.array([[96, 128]])})
    expected = detect(outputs, metadata.detector, (96, 128), (96, 128))
    assert len(set(expected.scores.tolist())) < 5
    np.testing.assert_array_equal(found["labels"][0][: len(expected)], expected.labels)
    np.testing.assert_allclose(found["boxes"][0][: len(expected)], expected.boxes, atol=1e-4)


def test_the_graph_carries_the_metadata():
    metadata = make_metadata()
    properties = {entry.key: entry.value for entry in decode_graph(metadata).metadata_props}
    assert read(properties[METADATA_KEY]) == metadata


def test_only_a_detector_has_one():
    metadata = dataclasses.replace(make_metadata(), task="features", detector=None)
    with pytest.raises(ValueError, match="metadata.task='features'"):
        decode_graph(metadata)
