"""The source fixes that Detectron2 v0.6 (October 2021) needs on a current stack.

Each fix replaces a few lines, as small as possible, and names the upstream commit that made the
same change later. None of them changes what Detectron2 computes: behaviour that is merely old (for
example ``DefaultTrainer`` not saving the optimizer) stays as in v0.6, so that code which runs here
runs on v0.6 anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

UPSTREAM_COMMIT_URL = "https://github.com/facebookresearch/detectron2/commit/"


@dataclass(frozen=True)
class Edit:
    """Replacement of one text that must occur exactly ``count`` times in one file.

    Attributes:
        path: file, relative to the root of the source tree, with forward slashes.
        old: text to replace.
        new: text to put there.
        count: how often ``old`` occurs.
    """

    path: str
    old: str
    new: str
    count: int = 1


@dataclass(frozen=True)
class Fix:
    """One named fix.

    Attributes:
        name: short name, unique in the table.
        why: what breaks without it.
        upstream: where upstream made the same change: a commit's hash, or the address of a
            pull request where it is only proposed.
        edits: the replacements; all or none are applied.
    """

    name: str
    why: str
    upstream: str
    edits: tuple[Edit, ...]

    @property
    def reference(self) -> str:
        """Address of the upstream change."""
        is_address = self.upstream.startswith("https://")
        return self.upstream if is_address else UPSTREAM_COMMIT_URL + self.upstream


FIXES: tuple[Fix, ...] = (
    Fix(
        name="deform-conv-without-compiled-ops",
        why="detectron2.layers must import where the C++ ops are not built",
        upstream="710e7795d0eeadf9def0e7ef957eea13532e34cf",  # 2022-01-25
        edits=(
            Edit(
                "detectron2/layers/deform_conv.py",
                "\nfrom detectron2 import _C\n",
                "\ntry:\n    from detectron2 import _C\nexcept ImportError:\n    _C = None\n",
            ),
        ),
    ),
    Fix(
        name="rotated-ops-without-compiled-ops",
        why="detectron2.layers must import where the C++ ops are not built",
        upstream="ac31916cd2980a8cbf492d7f42c8eee383a08c06",  # 2021-11-22
        edits=(
            Edit(
                "detectron2/layers/rotated_boxes.py",
                "\nfrom detectron2 import _C\n",
                "import torch\n",
            ),
            Edit(
                "detectron2/layers/rotated_boxes.py",
                " _C.box_iou_rotated(",
                " torch.ops.detectron2.box_iou_rotated(",
            ),
            Edit(
                "detectron2/layers/roi_align_rotated.py",
                "\nfrom detectron2 import _C\n",
                "",
            ),
            Edit(
                "detectron2/layers/roi_align_rotated.py",
                " _C.roi_align_rotated_",
                " torch.ops.detectron2.roi_align_rotated_",
                count=2,
            ),
        ),
    ),
    Fix(
        name="coco-evaluation-without-compiled-ops",
        why="detectron2.evaluation must import, and use pycocotools, where C++ ops are not built",
        upstream="710e7795d0eeadf9def0e7ef957eea13532e34cf",  # 2022-01-25
        edits=(
            Edit(
                "detectron2/evaluation/coco_evaluation.py",
                "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
                "from detectron2.structures",
                "from detectron2.structures",
            ),
            Edit(
                "detectron2/evaluation/coco_evaluation.py",
                "from .evaluator import DatasetEvaluator\n",
                "from .evaluator import DatasetEvaluator\n"
                "\n"
                "try:\n"
                "    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
                "except ImportError:\n"
                "    COCOeval_opt = COCOeval\n",
            ),
            Edit(
                "detectron2/evaluation/coco_evaluation.py",
                "        self._use_fast_impl = use_fast_impl\n",
                "        self._use_fast_impl = use_fast_impl and COCOeval_opt is not COCOeval\n",
            ),
        ),
    ),
    Fix(
        name="pillow-10-linear",
        why="Pillow 10 removed Image.LINEAR; detectron2.data does not import",
        upstream="ff53992b1985b63bd3262b5a36167098e3dada02",  # 2023-07-06
        edits=(
            Edit(
                "detectron2/data/transforms/transform.py",
                "interp=Image.LINEAR",
                "interp=Image.BILINEAR",
            ),
        ),
    ),
    Fix(
        name="numpy-1.24-int",
        why="NumPy 1.24 removed np.int; the log silently loses the table of instances per class",
        upstream="027099d37a246aebf835b0bd05b075758c3a40cd",  # 2023-06-12
        edits=(
            Edit("detectron2/data/build.py", "dtype=np.int)", "dtype=int)"),
            Edit("detectron2/data/build.py", "dtype=np.int\n", "dtype=int\n"),
            Edit(
                "detectron2/evaluation/sem_seg_evaluation.py",
                "dtype=np.int)",
                "dtype=int)",
                count=2,
            ),
        ),
    ),
    Fix(
        name="numpy-1.24-float",
        why="NumPy 1.24 removed np.float; semantic segmentation cannot be evaluated",
        upstream="54dd614e9af66cae49d96cef676de871b38db53c",  # 2023-06-13
        edits=(
            Edit(
                "detectron2/evaluation/sem_seg_evaluation.py",
                "dtype=np.float)",
                "dtype=float)",
                count=2,
            ),
            Edit(
                "detectron2/evaluation/sem_seg_evaluation.py",
                ".astype(np.float)",
                ".astype(float)",
                count=3,
            ),
        ),
    ),
    Fix(
        name="numpy-1.24-str",
        why="NumPy 1.24 removed np.str; Pascal VOC cannot be loaded",
        upstream="654570a2f1e787c6a26c975275360396e2ae833a",  # 2023-06-13
        edits=(Edit("detectron2/data/datasets/pascal_voc.py", "dtype=np.str)", "dtype=str)"),),
    ),
    Fix(
        name="numpy-1.24-bool",
        why="NumPy 1.24 to 1.26 have no np.bool; masks, pictures and Pascal VOC evaluation fail",
        upstream="857d5de21a7789d1bba46694cf608b1cb2ea128a",  # 2022-12-20
        edits=(
            Edit("detectron2/structures/masks.py", ".astype(np.bool)", ".astype(bool)", count=2),
            Edit("detectron2/structures/masks.py", "dtype=np.bool)", "dtype=bool)"),
            Edit("detectron2/utils/visualizer.py", ".astype(np.bool)", ".astype(bool)", count=3),
            Edit("detectron2/utils/video_visualizer.py", "dtype=np.bool)", "dtype=bool)"),
            Edit(
                "detectron2/evaluation/pascal_voc_evaluation.py",
                ".astype(np.bool)",
                ".astype(bool)",
                count=2,
            ),
        ),
    ),
    Fix(
        name="python-3.11-random-sample",
        why="Python 3.11 samples from no set; a dataset mapper that returns None stops training",
        upstream="400a49c1ec11a18dd25aea3910507bc3bcd15794",  # 2025-04-13
        edits=(
            Edit(
                "detectron2/data/common.py",
                "sample(self._fallback_candidates, k=1)",
                "sample(list(self._fallback_candidates), k=1)",
            ),
        ),
    ),
    Fix(
        name="setuptools-82-pkg-resources",
        why="setuptools 82 removed pkg_resources; detectron2.model_zoo does not import",
        # Upstream head still has it (issue 5494): proposed, not merged.
        upstream="https://github.com/facebookresearch/detectron2/pull/5510",
        edits=(
            Edit("detectron2/model_zoo/model_zoo.py", "import pkg_resources\n", ""),
            Edit(
                "detectron2/model_zoo/model_zoo.py",
                "pkg_resources.resource_filename(\n"
                '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
                "    )",
                'os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)',
            ),
        ),
    ),
    Fix(
        name="export-without-caffe2",
        why="torch ships no caffe2; detectron2.export and detectron2.utils.analysis do not import",
        upstream="d29378aa3e6901cfa866279547d7a26301fa810f",  # 2021-11-22
        edits=(
            Edit(
                "detectron2/export/__init__.py",
                "from .api import *\n",
                "try:\n"
                "    from caffe2.proto import caffe2_pb2 as _tmp\n"
                "except ImportError:\n"
                "    pass\n"
                "else:\n"
                "    from .api import *\n",
            ),
        ),
    ),
    Fix(
        name="torch-2-lr-scheduler-class",
        why="torch 2's own schedulers are no _LRScheduler; checkpoints lack their state",
        upstream="210809711838d5bd193e8bb3bc4bab39a660bf5b",  # 2022-12-20
        edits=(
            Edit(
                "detectron2/engine/hooks.py",
                "torch.optim.lr_scheduler._LRScheduler",
                "torch.optim.lr_scheduler.LRScheduler",
                count=2,
            ),
        ),
    ),
    Fix(
        name="launch-on-cpu",
        why="several processes on a machine without GPU (gloo) stop at an assertion",
        upstream="b4b6cc9cba378f6ea089663303cb35f75b1a1904",  # 2023-01-06
        edits=(
            Edit(
                "detectron2/engine/launch.py",
                "    assert torch.cuda.is_available(),"
                ' "cuda is not available. Please check your installation."\n',
                "    has_gpu = torch.cuda.is_available()\n",
            ),
            Edit(
                "detectron2/engine/launch.py",
                'backend="NCCL",',
                'backend="NCCL" if has_gpu else "GLOO",',
            ),
            Edit(
                "detectron2/engine/launch.py",
                "    assert num_gpus_per_machine <= torch.cuda.device_count()\n"
                "    torch.cuda.set_device(local_rank)\n",
                "    if has_gpu:\n"
                "        assert num_gpus_per_machine <= torch.cuda.device_count()\n"
                "        torch.cuda.set_device(local_rank)\n",
            ),
        ),
    ),
)
