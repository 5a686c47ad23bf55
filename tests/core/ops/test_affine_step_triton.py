"""The step kernel: interpreted on the CPU, compiled for GPUs, and run where there is one."""

import importlib.util

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def test_the_interpreted_kernel_updates_like_the_plain_implementation(run_cases) -> None:
    run_cases("affine_step_triton_cases", "cpu", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernel_on_the_gpu_updates_like_the_plain_implementation(run_cases) -> None:
    run_cases("affine_step_triton_cases", "cuda")


@pytest.mark.parametrize(("sgd", "general"), [(True, False), (False, True)])
def test_the_kernel_compiles_without_a_gpu_into_wide_reads_and_exact_division(sgd, general) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from tr_det.core.ops import affine_step_triton

    constants = {
        "SGD": sgd, "MOMENTUM": True, "NESTEROV": False, "MAXIMIZE": False,
        "PER_CHANNEL": general, "SHIFTED": general, "HELD": general,
        "ALIGNMENT": 16, "ROW": 10, "GRID": 7, "FLOOR": 1e-8, "FREE": -128,
        "BLOCK": affine_step_triton.BLOCK,
    }  # fmt: skip
    types = {"addresses": "*i64", "starts": "*i64", "owners": "*i32", "counts": "*i32"}
    types |= dict.fromkeys(("momentum", "undamped", "weight_decay"), "fp32")
    names = affine_step_triton._step_kernel.arg_names
    source = ASTSource(
        fn=affine_step_triton._step_kernel,
        signature={n: "constexpr" if n in constants else types.get(n, "*fp32") for n in names},
        constexprs=constants,
    )
    assembly = compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    assert "div.rn.f32" in assembly
    assert ".v4.b32" in assembly
