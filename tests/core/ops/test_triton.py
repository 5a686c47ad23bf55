"""The Triton kernels: interpreted on the CPU, compiled for GPUs, and run where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tr_det.core.ops import Affine

pytest.importorskip("triton")

FOLDER = Path(__file__).parent


def run_cases(device, **environment):
    """Run all cases in a subprocess: Triton decides at import whether to interpret kernels."""
    modules = "affine_triton_cases", "affine_step_triton_cases"
    program = "".join(f"import {name}; {name}.main({device!r})\n" for name in modules)
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_interpreted_kernels_give_the_numbers_of_the_definition():
    run_cases("cpu", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_on_the_gpu_give_the_numbers_of_the_definition():
    run_cases("cuda")


def assembly(function, constants, types):
    """Return a kernel's PTX; needs no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    names = function.arg_names
    source = ASTSource(
        fn=function,
        signature={n: "constexpr" if n in constants else types.get(n, "*fp32") for n in names},
        constexprs={n: constants[n] for n in names if n in constants},
    )
    return compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_kernels_divide_as_ieee_says(gradient, per_channel):
    """Triton's own division is approximate: near ties, codes would differ from the CPU's."""
    from tr_det.core.ops import affine_triton

    axis = 0 if per_channel else None
    affine = Affine(0, 15, divisor=15, offset=True, axis=axis, estimator="ewgs", delta=0.1)
    constants = affine_triton._constants(torch.zeros(()), affine)
    constants |= {"GRADIENT": gradient, "WANT_SCALE": gradient}
    types = dict.fromkeys(("count", "channels", "inner"), "i32")
    assert "div.rn.f32" in assembly(affine_triton._kernel, constants, types)


@pytest.mark.parametrize(("sgd", "general"), [(True, False), (False, True)])
def test_the_step_kernel_has_wide_reads_and_exact_division(sgd, general):
    from tr_det.core.ops import affine_step_triton

    constants = dict.fromkeys(("PER_CHANNEL", "SHIFTED", "HELD"), general)
    constants |= {"SGD": sgd, "MOMENTUM": True, "NESTEROV": False, "MAXIMIZE": False}
    constants |= {"ALIGNMENT": 16, "ROW": 10, "GRID": 8, "FLOOR": 1e-8, "FREE": -128}
    constants |= {"BLOCK": affine_step_triton.BLOCK}
    types = {"addresses": "*i64", "starts": "*i64", "owners": "*i32", "counts": "*i32"}
    types |= dict.fromkeys(("momentum", "undamped", "weight_decay"), "fp32")
    ptx = assembly(affine_step_triton._step_kernel, constants, types)
    assert "div.rn.f32" in ptx
    assert ".v4.b32" in ptx
