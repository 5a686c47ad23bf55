import json
import math

import pytest
import study


def test_a_study_writes_its_table_and_what_it_was_run_with(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        "sys.argv",
        ["study.py", "final-target", "--steps", "20", "--seeds", "2", "--output", str(tmp_path)],
    )
    monkeypatch.setattr(study, "Laboratory", lambda: _Laboratory())
    study.main()
    stored = json.loads((tmp_path / "final-target.json").read_text())
    assert stored["steps"] == 20
    assert [row["setting"] for row in stored["rows"]][0] == "final target 0"
    assert stored["rows"][0]["accuracy"] == [90.0, 92.0]
    text = (tmp_path / "final-target.md").read_text()
    assert "| final target 0.001 | 91.00 ± 1.41 |" in text
    assert text.strip() == capsys.readouterr().out.strip()


class _Laboratory:
    """Stands in for the training: accuracy tells the seed, nothing is tracked."""

    def run(self, run):
        from tr_det.study.experiment import Outcome, torch

        assert run.steps == 20
        return Outcome(90.0 + 2 * run.seed, *[torch.zeros(0)] * 3, math.nan, torch.zeros(0))


def test_an_output_folder_that_cannot_be_is_told_before_training(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = ["final-target", "--output", str(tmp_path / "file" / "x")]
    monkeypatch.setattr("sys.argv", ["study.py", *arguments])
    monkeypatch.setattr(study, "Laboratory", None)
    with pytest.raises(SystemExit, match="2"):
        study.main()
    assert capsys.readouterr().err.startswith("error: [Errno 20]")


@pytest.mark.parametrize("arguments", [["nothing"], ["tracking", "--seeds", "0"]])
def test_bad_arguments_are_refused(monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["study.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        study.main()
