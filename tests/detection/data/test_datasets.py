import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from tr_det.detection import QuantTrainer, register_digit_scenes
from tr_det.detection.data.datasets import check_datasets


def register(name, json_file, images):
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, str(json_file), str(images))


def test_the_embedded_datasets_are_registered_and_may_be_registered_again():
    register_digit_scenes()
    assert {"digit_scenes_train", "digit_scenes_val"} <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("digit_scenes_val").evaluator_type == "coco"
    assert MetadataCatalog.get("digit_scenes_val").thing_classes == list("0123456789")


def test_an_unregistered_dataset_is_named(make_config):
    with pytest.raises(ValueError, match=r"DATASETS\.TEST='coco_2071_val': no such dataset"):
        check_datasets(make_config("DATASETS.TEST", ("coco_2071_val",)))


def test_training_without_a_dataset_is_refused(make_config):
    cfg = make_config("DATASETS.TRAIN", ())
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN=\(\): must name at least one dataset"):
        check_datasets(cfg)
    check_datasets(cfg, ("TEST",))


def test_a_missing_annotation_file_is_named(make_config, tmp_path):
    register("gone", tmp_path / "gone.json", tmp_path)
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN='gone': json_file .*gone\.json does"):
        check_datasets(make_config("DATASETS.TRAIN", ("gone",)))


def test_a_missing_image_folder_is_named(make_config, tmp_path):
    (tmp_path / "ok.json").write_text("{}")
    register("no_images", tmp_path / "ok.json", tmp_path / "images")
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN='no_images': image_root .*images does"):
        check_datasets(make_config("DATASETS.TRAIN", ("no_images",)))


@pytest.mark.parametrize("text", ['{"images": [', "", "[]", '{"info": {}}'])
def test_a_broken_annotation_file_is_named(make_config, tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    register("broken", tmp_path / "broken.json", tmp_path)
    with pytest.raises(ValueError, match=r"broken\.json: not a COCO annotation file"):
        QuantTrainer.build_train_loader(make_config("DATASETS.TRAIN", ("broken",)))
