"""Datasets that are broken in one place."""

import json
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def broken(tiny, scenes, tmp_path):
    """Return ``broken(split, change)``: registers a copy that ``change(coco, folder)`` breaks."""

    def make(split, change):
        metadata = MetadataCatalog.get({"train": tiny.TRAIN, "val": tiny.VAL}[split])
        DatasetCatalog.get(metadata.name)
        folder = tmp_path / split
        shutil.copytree(metadata.image_root, folder)
        coco = json.loads(Path(metadata.json_file).read_text())
        change(coco, folder)
        (tmp_path / f"{split}.json").write_text(json.dumps(coco))
        name = f"broken_{split}"
        tiny.register(name, tmp_path / f"{split}.json", folder)
        return name

    return make
