"""Fixtures that make the optimizers on the host behave as on a device."""

import pytest

from tr_det.core.optim import nonfinite, scheduled


@pytest.fixture
def like_a_device(monkeypatch):
    """Take the code path where values cannot be read at once."""
    monkeypatch.setattr(scheduled, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(nonfinite, "_answers_later", lambda answer: True)
    monkeypatch.setattr(nonfinite, "_fetch", lambda answer: lambda: bool(answer))


@pytest.fixture(params=["host", "device"])
def place(request):
    """Take either code path."""
    if request.param == "device":
        request.getfixturevalue("like_a_device")
