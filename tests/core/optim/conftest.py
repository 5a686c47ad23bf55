"""Playing a device on the host."""

import pytest

from tr_det.core.optim import nonfinite, scheduled


@pytest.fixture
def like_a_device(monkeypatch):
    """Let the optimizers take the way they take where values cannot be read at once."""
    monkeypatch.setattr(scheduled, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(nonfinite, "_answers_later", lambda answer: True)
    monkeypatch.setattr(nonfinite, "_fetch", lambda answer: lambda: bool(answer))
