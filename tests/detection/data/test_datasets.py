import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tr_det.detection import QuantTrainer, register_digit_scenes
from tr_det.detection.data.datasets import check_datasets


def test_the_embedded_datasets_are_registered_and_may_be_registered_again():
    register_digit_scenes()
    assert {"digit_scenes_train", "digit_scenes_val"} <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("digit_scenes_val").evaluator_type == "coco"
    assert MetadataCatalog.get("digit_scenes_val").thing_classes == list("0123456789")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("coco_2071_val",), r"='coco_2071_val': must be a dataset"),
        (("no_file",), r"='no_file': json_file .*gone\.json does not exist"),
        (("no_images",), r"='no_images': image_root .*gone does not exist"),
        ((), r"=\(\): must be at least one name"),
    ],
)
def test_a_dataset_that_is_not_there_is_named(make_config, tiny, tmp_path, names, message):
    (tmp_path / "ok.json").write_text("{}")
    tiny.register("no_file", tmp_path / "gone.json", tmp_path)
    tiny.register("no_images", tmp_path / "ok.json", tmp_path / "gone")
    cfg = make_config("DATASETS.TRAIN", names)
    with pytest.raises(ValueError, match=rf"DATASETS\.TRAIN{message}"):
        check_datasets(cfg)
    check_datasets(cfg, ("TEST",))


@pytest.mark.parametrize("text", ['{"images": [', "", "[]", '{"info": {}}'])
def test_a_broken_annotation_file_is_named(make_config, tiny, tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    tiny.register("broken", tmp_path / "broken.json", tmp_path)
    with pytest.raises(ValueError, match=r"broken\.json: not a COCO annotation file"):
        QuantTrainer.build_train_loader(make_config("DATASETS.TRAIN", ("broken",)))
