"""The source fixes that Detectron2 v0.6 (October 2021) needs on a current stack.

Each fix replaces a few lines, as small as possible, and names the upstream commit that made the
same change later. None of them changes what Detectron2 computes: behaviour that is merely old (for
example ``DefaultTrainer`` not saving the optimizer) stays as in v0.6, so that code which runs here
runs on v0.6 anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

UPSTREAM = "https://github.com/facebookresearch/detectron2/"


class FixError(Exception):
    """A fix does not fit the source tree."""


class Edit(NamedTuple):
    """Replacement of one text that must occur a stated number of times in one file.

    Attributes:
        path: file, relative to the package, with forward slashes.
        old: text to replace.
        new: text to put there.
        times: how often ``old`` occurs.
    """

    path: str
    old: str
    new: str
    times: int = 1


class Fix(NamedTuple):
    """One named fix.

    Attributes:
        name: short name, unique in the table.
        why: what breaks without it.
        upstream: where upstream made the same change, or proposes it, below its repository.
        edits: the replacements.
    """

    name: str
    why: str
    upstream: str
    edits: tuple[Edit, ...]


def apply_fixes(source: Path, fixes: Iterable[Fix]) -> None:
    """Apply the fixes to a source tree.

    Args:
        source: root of the tree.
        fixes: what to change.

    Raises:
        FixError: a text is not found as often as stated.
    """
    for fix in fixes:
        for edit in fix.edits:
            path = source / "detectron2" / edit.path
            text = path.read_text(encoding="utf-8")
            if text.count(edit.old) != edit.times:
                raise FixError(f"fix {fix.name}: {edit.path} lacks {edit.times} x {edit.old!r}")
            path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def describe_fixes(fixes: Iterable[Fix]) -> str:
    """Return the table of fixes as text: name, changed files, reason, upstream change."""
    blocks = []
    for fix in fixes:
        files = ", ".join(sorted({edit.path for edit in fix.edits}))
        blocks.append(f"{fix.name} ({files}): {fix.why}\n    {UPSTREAM}{fix.upstream}\n")
    return "\n".join(blocks)


FIXES: tuple[Fix, ...] = (
    Fix(
        "deform-conv-without-compiled-ops",
        "detectron2.layers must import where the C++ ops are not built",
        "commit/710e7795d0eeadf9def0e7ef957eea13532e34cf",  # 2022-01-25
        (
            Edit(
                "layers/deform_conv.py",
                "\nfrom detectron2 import _C\n",
                "\ntry:\n    from detectron2 import _C\nexcept ImportError:\n    _C = None\n",
            ),
        ),
    ),
    Fix(
        "rotated-ops-without-compiled-ops",
        "detectron2.layers must import where the C++ ops are not built",
        "commit/ac31916cd2980a8cbf492d7f42c8eee383a08c06",  # 2021-11-22
        (
            Edit("layers/rotated_boxes.py", "\nfrom detectron2 import _C\n", "import torch\n"),
            Edit(
                "layers/rotated_boxes.py",
                " _C.box_iou_rotated(",
                " torch.ops.detectron2.box_iou_rotated(",
            ),
            Edit("layers/roi_align_rotated.py", "\nfrom detectron2 import _C\n", ""),
            Edit(
                "layers/roi_align_rotated.py",
                " _C.roi_align_rotated_",
                " torch.ops.detectron2.roi_align_rotated_",
                2,
            ),
        ),
    ),
    Fix(
        "coco-evaluation-without-compiled-ops",
        "detectron2.evaluation must import, and use pycocotools, where C++ ops are not built",
        "commit/710e7795d0eeadf9def0e7ef957eea13532e34cf",  # 2022-01-25
        (
            Edit(
                "evaluation/coco_evaluation.py",
                "\nfrom detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
                "\n",
            ),
            Edit(
                "evaluation/coco_evaluation.py",
                "from .evaluator import DatasetEvaluator\n",
                "from .evaluator import DatasetEvaluator\n\ntry:\n"
                "    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
                "except ImportError:\n    COCOeval_opt = COCOeval\n",
            ),
            Edit(
                "evaluation/coco_evaluation.py",
                "        self._use_fast_impl = use_fast_impl\n",
                "        self._use_fast_impl = use_fast_impl and COCOeval_opt is not COCOeval\n",
            ),
        ),
    ),
    Fix(
        "pillow-10-linear",
        "Pillow 10 removed Image.LINEAR; detectron2.data does not import",
        "commit/ff53992b1985b63bd3262b5a36167098e3dada02",  # 2023-07-06
        (Edit("data/transforms/transform.py", "interp=Image.LINEAR", "interp=Image.BILINEAR"),),
    ),
    Fix(
        "numpy-1.24-int",
        "NumPy 1.24 removed np.int; the log silently loses the table of instances per class",
        "commit/027099d37a246aebf835b0bd05b075758c3a40cd",  # 2023-06-12
        (
            Edit("data/build.py", "dtype=np.int)", "dtype=int)"),
            Edit("data/build.py", "dtype=np.int\n", "dtype=int\n"),
            Edit("evaluation/sem_seg_evaluation.py", "dtype=np.int)", "dtype=int)", 2),
        ),
    ),
    Fix(
        "numpy-1.24-float",
        "NumPy 1.24 removed np.float; semantic segmentation cannot be evaluated",
        "commit/54dd614e9af66cae49d96cef676de871b38db53c",  # 2023-06-13
        (
            Edit("evaluation/sem_seg_evaluation.py", "dtype=np.float)", "dtype=float)", 2),
            Edit("evaluation/sem_seg_evaluation.py", ".astype(np.float)", ".astype(float)", 3),
        ),
    ),
    Fix(
        "numpy-1.24-str",
        "NumPy 1.24 removed np.str; Pascal VOC cannot be loaded",
        "commit/654570a2f1e787c6a26c975275360396e2ae833a",  # 2023-06-13
        (Edit("data/datasets/pascal_voc.py", "dtype=np.str)", "dtype=str)"),),
    ),
    Fix(
        "numpy-1.24-bool",
        "NumPy 1.24 to 1.26 have no np.bool; masks, pictures and Pascal VOC evaluation fail",
        "commit/857d5de21a7789d1bba46694cf608b1cb2ea128a",  # 2022-12-20
        (
            Edit("structures/masks.py", ".astype(np.bool)", ".astype(bool)", 2),
            Edit("structures/masks.py", "dtype=np.bool)", "dtype=bool)"),
            Edit("utils/visualizer.py", ".astype(np.bool)", ".astype(bool)", 3),
            Edit("utils/video_visualizer.py", "dtype=np.bool)", "dtype=bool)"),
            Edit("evaluation/pascal_voc_evaluation.py", ".astype(np.bool)", ".astype(bool)", 2),
        ),
    ),
    Fix(
        "python-3.11-random-sample",
        "Python 3.11 samples from no set; a dataset mapper that returns None stops training",
        "commit/400a49c1ec11a18dd25aea3910507bc3bcd15794",  # 2025-04-13
        (
            Edit(
                "data/common.py",
                "sample(self._fallback_candidates, k=1)",
                "sample(list(self._fallback_candidates), k=1)",
            ),
        ),
    ),
    Fix(
        "setuptools-82-pkg-resources",
        "setuptools 82 removed pkg_resources; detectron2.model_zoo does not import",
        "pull/5510",  # proposed, not merged: upstream's head still has it (issue 5494)
        (
            Edit("model_zoo/model_zoo.py", "import pkg_resources\n", ""),
            Edit(
                "model_zoo/model_zoo.py",
                "pkg_resources.resource_filename(\n"
                '        "detectron2.model_zoo", os.path.join("configs", config_path)\n    )',
                'os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)',
            ),
        ),
    ),
    Fix(
        "export-without-caffe2",
        "torch ships no caffe2; detectron2.export and detectron2.utils.analysis do not import",
        "commit/d29378aa3e6901cfa866279547d7a26301fa810f",  # 2021-11-22
        (
            Edit(
                "export/__init__.py",
                "from .api import *\n",
                "try:\n    from caffe2.proto import caffe2_pb2 as _tmp\n"
                "except ImportError:\n    pass\nelse:\n    from .api import *\n",
            ),
        ),
    ),
    Fix(
        "torch-2-lr-scheduler-class",
        "torch 2's own schedulers are no _LRScheduler; checkpoints lack their state",
        "commit/210809711838d5bd193e8bb3bc4bab39a660bf5b",  # 2022-12-20
        (
            Edit(
                "engine/hooks.py",
                "torch.optim.lr_scheduler._LRScheduler",
                "torch.optim.lr_scheduler.LRScheduler",
                2,
            ),
        ),
    ),
    Fix(
        "launch-on-cpu",
        "several processes on a machine without GPU (gloo) stop at an assertion",
        "commit/b4b6cc9cba378f6ea089663303cb35f75b1a1904",  # 2023-01-06
        (
            Edit(
                "engine/launch.py",
                "    assert torch.cuda.is_available(),"
                ' "cuda is not available. Please check your installation."\n',
                "    has_gpu = torch.cuda.is_available()\n",
            ),
            Edit("engine/launch.py", 'backend="NCCL",', 'backend="NCCL" if has_gpu else "GLOO",'),
            Edit(
                "engine/launch.py",
                "    assert num_gpus_per_machine <= torch.cuda.device_count()\n"
                "    torch.cuda.set_device(local_rank)\n",
                "    if has_gpu:\n"
                "        assert num_gpus_per_machine <= torch.cuda.device_count()\n"
                "        torch.cuda.set_device(local_rank)\n",
            ),
        ),
    ),
)
