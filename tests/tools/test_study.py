import json

import pytest
import study

from tr_det.study import runner


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["study.py", *map(str, arguments)])
    study.main()


def test_a_study_writes_its_table_and_what_it_was_run_with(monkeypatch, tmp_path, capsys):
    class History:
        running = ()

        def __init__(self, seed):
            self.final_accuracy = 90.0 + 2 * seed

    monkeypatch.setattr(runner, "run_cell", lambda folder, keys, seed, output: History(seed))
    call(monkeypatch, "final-target", "--steps", 20, "--seeds", 2, "--output", tmp_path)
    stored = json.loads((tmp_path / "final-target.json").read_text())
    assert stored["steps"] == 20
    assert [row["setting"] for row in stored["rows"]][0] == "final target 0"
    assert stored["rows"][0]["accuracy"] == [90.0, 92.0]
    text = (tmp_path / "final-target.md").read_text()
    assert "| final target 0.001 | 91.00 ± 1.41 |" in text
    assert text.strip() == capsys.readouterr().out.strip()


def test_an_output_folder_that_cannot_be_made_is_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, "final-target", "--output", tmp_path / "file" / "x")
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: [Errno 20]")


@pytest.mark.parametrize("arguments", [["nothing"], ["tracking", "--seeds", "0"]])
def test_bad_arguments_are_refused(monkeypatch, arguments):
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, *arguments)
