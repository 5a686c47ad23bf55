"""The Triton kernels: interpreted on the CPU, compiled for GPUs, and run where there is one."""

import importlib.util

import pytest
import torch

from tr_det.core.ops import Grid, fixed_grid_quantize

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def test_interpreted_kernels_give_the_codes_and_gradients_of_eq_13(run_cases) -> None:
    run_cases("triton_cases", "cpu", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_on_the_gpu_give_the_codes_and_gradients_of_eq_13(run_cases) -> None:
    run_cases("triton_cases", "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_gives_what_the_cpu_gives(dtype) -> None:
    x = torch.randn(2, 8, 33, 17, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        leaf = x.to(device).requires_grad_()
        scale = torch.tensor(1.3, device=device, requires_grad=True)
        out = fixed_grid_quantize(leaf, scale, Grid.of(4, True))
        out.square().sum().backward()
        results.append([t.detach().cpu() for t in (out, leaf.grad, scale.grad)])
    (out, grad, scale_grad), (gpu_out, gpu_grad, gpu_scale_grad) = results
    assert torch.equal(out, gpu_out)
    torch.testing.assert_close(grad, gpu_grad)
    torch.testing.assert_close(scale_grad, gpu_scale_grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["_quantize_kernel", "_gradient_kernel"])
def test_kernels_compile_without_a_gpu_and_divide_as_ieee_says(kernel, capability) -> None:
    """Triton's own division is approximate: codes would differ from the CPU's near ties."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from tr_det.core.ops import fixed_grid_triton

    function = getattr(fixed_grid_triton, kernel)
    constants = {
        "ALPHA": 0,
        "BETA": 15,
        "GAMMA": 16,
        "BINARY": False,
        "WANT_SCALE": True,
        "FLOOR": 1e-8,
        "BLOCK": fixed_grid_triton.BLOCK,
    }
    types = {"count": "i32", "scale_ptr": "*fp32", "sums_ptr": "*fp32"}
    names = function.arg_names
    source = ASTSource(
        fn=function,
        signature={n: "constexpr" if n in constants else types.get(n, "*fp32") for n in names},
        constexprs={n: constants[n] for n in names if n in constants},
    )
    assembly = compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
    assert "div.rn.f32" in assembly
