"""Checkpoints in half precision, and files that are none."""

import pack_checkpoint
import pytest
import torch


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """Run the tool on a saved value; return what it wrote."""

    def run(value):
        torch.save(value, tmp_path / "in.pth")
        monkeypatch.setattr("sys.argv", ["", str(tmp_path / "in.pth"), str(tmp_path / "out.pth")])
        pack_checkpoint.main()
        return torch.load(tmp_path / "out.pth", weights_only=True)["model"]

    return run


def test_weights_are_halved_and_the_rest_is_kept(pack):
    model = {
        "w": torch.full((2, 2), 0.5),
        "b": torch.ones(2),
        "n": torch.tensor(3),
        "label": "text",
    }
    packed = pack({"model": model, "iteration": 3})
    assert packed["w"].dtype == torch.float16
    assert torch.equal(packed["w"].float(), model["w"])
    assert packed["b"].dtype == torch.float32
    assert packed["label"] == "text"


@pytest.mark.parametrize("value", [[1], {"model": [1]}, {"model": {"x": torch.nn.Linear}}], ids=str)
def test_another_file_is_refused_in_one_line(pack, capsys, tmp_path, value):
    with pytest.raises(SystemExit, match="2"):
        pack(value)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "in.pth" in error
    assert "weights_only" not in error
    assert not (tmp_path / "out.pth").exists()
