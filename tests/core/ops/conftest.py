"""The implementations on CPUs to choose from."""

import pytest

from tr_det.core.ops import affine_compiled
from tr_det.core.ops.build import library


@pytest.fixture(scope="module", params=["kernels", "torch operations"])
def either(request):
    """Run a test with the compiled kernels and without; skipped where they cannot be built."""
    if request.param == "kernels" and library() is None:
        pytest.skip("no C compiler")
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "kernels":
            patch.setattr(affine_compiled, "library", lambda: None)
        yield
