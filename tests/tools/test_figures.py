import figures
import pytest


@pytest.mark.parametrize("factor", ["0", "-1", "nan"])
def test_a_factor_must_be_positive(monkeypatch, capsys, factor):
    monkeypatch.setattr("sys.argv", ["figures.py", "step-sizes", "--factor", factor])
    with pytest.raises(SystemExit, match="2"):
        figures.main()
    assert "--factor must be above 0" in capsys.readouterr().err
