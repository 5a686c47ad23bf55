import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from tr_det.runtime.cli import UserMistakeError, mistakes_for_parent, one_line_errors


@pytest.mark.parametrize(
    "error", [ValueError("a:\n  b"), OSError("a: b"), PermissionError(13, "b", "a")]
)
def test_a_users_mistake_is_one_line_and_status_2(error, capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        raise error
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: a: b\n"


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError("x"), TypeError("x")])
@pytest.mark.parametrize("context", [one_line_errors, mistakes_for_parent])
def test_bugs_keep_their_tracebacks(context, error):
    with pytest.raises(type(error)), context():
        raise error


def test_an_error_in_a_loaders_process_is_cut_to_its_message(capsys):
    samples = torch.utils.data.DataLoader(Broken(), num_workers=1)
    with pytest.raises(SystemExit), one_line_errors():
        next(iter(samples))
    assert capsys.readouterr().err == "error: a/b.jpg: cannot be read (OSError: broken)\n"


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise OSError("a/b.jpg: cannot be read\n(OSError: broken)")


def test_bugs_in_spawned_processes_keep_their_tracebacks():
    bug = ProcessRaisedException("Traceback ...\nKeyError: 'x'\n", 0, 1)
    with pytest.raises(ProcessRaisedException), one_line_errors():
        raise bug


def test_a_mistake_in_a_spawned_process_is_passed_on_in_one_line():
    with pytest.raises(UserMistakeError, match="^a b$"), mistakes_for_parent():
        raise ValueError("a\nb")


@pytest.mark.parametrize("context", [one_line_errors, mistakes_for_parent])
def test_a_traceback_may_be_asked_for(context, monkeypatch):
    monkeypatch.setenv("TR_DET_TRACEBACK", "1")
    with pytest.raises(ValueError, match="a"), context():
        raise ValueError("a")


@pytest.mark.parametrize("error", [ValueError("a"), FloatingPointError("a")])
def test_a_run_that_diverged_has_a_status_of_its_own(error):
    def run():
        with mistakes_for_parent():
            raise error

    with pytest.raises(UserMistakeError) as passed:
        run()
    text = f"Traceback ...\ntr_det.runtime.cli.{type(passed.value).__name__}: {passed.value}\n"
    statuses = []
    for raised in (error, ProcessRaisedException(text, 0, 1)):
        with pytest.raises(SystemExit) as stop, one_line_errors():
            raise raised
        statuses.append(stop.value.code)
    assert statuses == [3 if isinstance(error, FloatingPointError) else 2] * 2
