"""The Triton kernels: interpreted on the CPU, compiled for GPUs, and run where there is one."""

import importlib.util

import pytest
import torch

from tr_det.core.ops import Affine

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def test_interpreted_kernels_give_the_codes_and_gradients_of_the_definition(run_cases) -> None:
    run_cases("affine_triton_cases", "cpu", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_on_the_gpu_give_the_codes_and_gradients_of_the_definition(run_cases) -> None:
    run_cases("affine_triton_cases", "cuda")


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kernel", ["_quantize_kernel", "_gradient_kernel"])
def test_kernels_compile_without_a_gpu_and_divide_as_ieee_says(kernel, per_channel) -> None:
    """Triton's own division is approximate: codes would differ from the CPU's near ties."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from tr_det.core.ops import affine_triton

    function = getattr(affine_triton, kernel)
    affine = Affine(0, 15, divisor=15, offset=True, axis=0 if per_channel else None)
    constants = {
        **affine_triton._constants(torch.zeros(()), affine),
        "OFFSET": True,
        "FIRST": 0.0,
        "LAST": 15.0,
        "DELTA": 0.1,
        "SPREAD": None,
        "SLOPE": 1,
        "WANT_SCALE": True,
    }
    types = dict.fromkeys(("count", "channels", "inner"), "i32")
    names = function.arg_names
    source = ASTSource(
        fn=function,
        signature={n: "constexpr" if n in constants else types.get(n, "*fp32") for n in names},
        constexprs={n: constants[n] for n in names if n in constants},
    )
    assembly = compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
    assert "div.rn.f32" in assembly
