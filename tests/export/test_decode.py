import numpy as np
import pytest

from tests.export.detector_case import (
    class_by_class,
    decoded_by_detectron2,
    make_metadata,
    random_outputs,
)
from tr_det.export.decode import Boxes, detect, suppressed


@pytest.mark.parametrize(
    ("seed", "offset", "changes"),
    [
        (0, 0.0, {}),
        (1, 0.5, {"score_threshold": 0.5, "nms_threshold": 0.3}),
        (2, 0.0, {"candidates_per_level": 40, "detections_per_image": 300}),
        (3, 0.0, {"score_threshold": 0.0, "detections_per_image": 7, "scale_clamp": 0.2}),
        (4, 0.25, {"score_threshold": 0.95}),
    ],
)
def test_detections_are_those_of_detectron2(seed, offset, changes, monkeypatch):
    class_by_class(monkeypatch)
    metadata = make_metadata(offset, **changes)
    outputs = random_outputs(seed, batch=2)
    # Smaller than the padded image, so that some boxes lie in the padding and become empty.
    sizes, originals = [(70, 128), (96, 61)], [(141, 257), (96, 61)]
    expected = decoded_by_detectron2(outputs, metadata, sizes, originals)
    for index, (boxes, scores, labels) in enumerate(expected):
        found = detect(outputs, metadata.detector, sizes[index], originals[index], index)
        assert len(found) > 3
        np.testing.assert_array_equal(found.labels, labels)
        np.testing.assert_allclose(found.scores, scores, rtol=3e-7)
        np.testing.assert_allclose(found.boxes, boxes, rtol=0, atol=1e-4)
        assert (found.boxes.dtype, found.scores.dtype) == (np.float32, np.float32)
        assert found.labels.dtype == np.int64


def test_no_detection_is_an_empty_result():
    metadata = make_metadata(score_threshold=0.99)
    found = detect(random_outputs(0), metadata.detector, (96, 128), (96, 128))
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)


def test_extreme_outputs_give_finite_boxes_within_the_image():
    detector = make_metadata().detector
    outputs = random_outputs(0)
    outputs["deltas.p3"][0, :, 0, :4] = [np.inf, -np.inf, np.nan, 3e38]
    outputs["logits.p3"][0, :, 0, :6] = [np.inf, -np.inf, np.nan, 200, -200, 90]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = detect(outputs, detector, (96, 128), (48, 64))
    assert np.isfinite(found.boxes).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2:] <= [64, 48]).all()


def test_suppression_is_within_a_class_and_equal_scores_keep_their_order():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 5]])
    scores, labels = np.float32([0.5, 0.5, 0.5, 0.9]), np.array([0, 1, 0, 0])
    found = suppressed(Boxes(boxes, scores, labels), threshold=0.5, most=9)
    np.testing.assert_array_equal(found.labels, [0, 0, 1])  # an overlap of 0.5 is not above it
    np.testing.assert_array_equal(found.scores, np.float32([0.9, 0.5, 0.5]))
    assert len(suppressed(Boxes(boxes, scores, labels), threshold=0.5, most=2)) == 2


def test_outputs_that_do_not_fit_are_named():
    detector, outputs = make_metadata().detector, random_outputs(0)
    with pytest.raises(ValueError, match=r"deltas.p4: 23 channels, but 6 anchors"):
        detect({**outputs, "deltas.p4": outputs["deltas.p4"][:, 1:]}, detector, (9, 9), (9, 9))
    with pytest.raises(ValueError, match=r"outputs of p4: .* do not fit"):
        detect({**outputs, "deltas.p4": outputs["deltas.p5"]}, detector, (9, 9), (9, 9))
    del outputs["logits.p5"]
    with pytest.raises(ValueError, match=r"logits.p5: is not among the outputs"):
        detect(outputs, detector, (9, 9), (9, 9))
