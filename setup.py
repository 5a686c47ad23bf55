"""Packaging of tr_det: ``pip install -e .`` into an environment of your own.

The dependencies below are lower bounds for people who manage their own environment; the exact
versions that the project is tested with are pinned in ``requirements.txt``. Detectron2 is not on
the package index under its own name, so it is not listed: ``tools/install/detectron2.py`` installs
it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Read ``__version__`` as text: importing the package would need its dependencies."""
    text = (ROOT / "tr_det" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('tr_det/__init__.py has no line of the form __version__ = "..."')
    return match.group(1)


def read_readme() -> str:
    """Return the README, or nothing where it is not there (a partial copy of the tree)."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


DEMO = ["scikit-learn>=1.2"]
TIMM = ["timm>=1.0,<2"]  # backbones by MODEL.TIMM; DeiT and EfficientNet-lite0 of classifiers
EXPORT = ["onnx>=1.17", "onnxruntime>=1.20", "openvino>=2025.0", "safetensors>=0.4"]
STUDY = ["scipy>=1.9", "submitit>=1.5,<2"]  # tools/run_study.py: intervals, clusters
STUDY += ["jinja2>=3.1"]  # report.html of tools/report.py
VIDEO = ["av>=12"]  # frames of video files for tools/predict.py
TEST = ["pytest>=8", "pytest-xdist>=3.5", "pytest-cov>=5", "hypothesis>=6.80"]
TEST += ["ruff>=0.9", "mypy>=1.11", "torchao>=0.18,<1"]

setup(
    name="tr_det",
    version=read_version(),
    description="Low-bit quantization-aware training of detectors inside Detectron2",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["tr_det", "tr_det.*"]),
    package_data={
        "tr_det": [
            "py.typed",
            "core/ops/*.c",
            "digits/weights/*.pth",
            "study/page/templates/*",
        ]
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.24",
        "fvcore>=0.1.5.post20221221",
        "pycocotools>=2.0.6",
        "pillow>=9.1",
        "filelock>=3.13",
        # What Detectron2 itself imports; it is installed without its dependencies.
        "cloudpickle",
        "hydra-core>=1.1",
        "iopath>=0.1.7",
        "matplotlib>=3.6",
        "omegaconf>=2.3",
        "packaging",
        "tabulate",
        "tensorboard>=2.12",
        "termcolor",
        "tqdm",
        "yacs>=0.1.8",
    ],
    extras_require={
        "demo": DEMO,
        "export": EXPORT,
        "study": STUDY,
        "timm": TIMM,
        "video": VIDEO,
        "test": TEST + DEMO + EXPORT + STUDY + TIMM + VIDEO,
    },
)
