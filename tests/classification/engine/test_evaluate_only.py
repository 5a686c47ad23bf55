import logging

import pytest

from tr_det.classification.config.file import load_config
from tr_det.classification.engine.evaluate_only import evaluate_only
from tr_det.classification.engine.run import run


def qat(*overrides):
    return load_config("qat.yaml", overrides)


def test_evaluation_alone_gives_what_training_ended_with(folder):
    trained = run(qat())[-1]
    evaluated = evaluate_only(qat())
    assert len(evaluated) == 1
    assert (evaluated[0]["accuracy"], evaluated[0]["loss"]) == (
        trained["accuracy"],
        trained["loss"],
    )


def test_a_full_precision_checkpoint_is_calibrated_before_it_is_evaluated(folder):
    learnt = run(load_config("fp.yaml", ["run.output_dir", "fp", "solver.iterations", "60"]))[0]
    weights = ["model.pretraining", "", "model.weights", "fp/model_final.pth"]
    row = evaluate_only(qat(*weights, "quant.bits", "W8A8"))[0]
    assert learnt["accuracy"] > 40
    assert row["accuracy"] > learnt["accuracy"] - 15


def test_evaluation_without_any_checkpoint_is_refused(folder):
    with pytest.raises(ValueError, match=r"--eval-only: .*has no checkpoint"):
        evaluate_only(qat())


@pytest.fixture
def _own_logging():
    """Undo what a tool sets up for its process."""
    root, theirs = logging.getLogger(), logging.getLogger("fvcore")
    handlers, level, their_level = list(root.handlers), root.level, theirs.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    theirs.setLevel(their_level)


@pytest.mark.usefixtures("_own_logging")
def test_evaluation_takes_the_trained_weights_unless_others_are_named(folder, monkeypatch, caplog):
    import train_classifier

    def rows(*options):
        found = []
        arguments = ["--config-file", "own.yaml", "--eval-only", *options]
        monkeypatch.setattr("sys.argv", ["train_classifier.py", *arguments])
        monkeypatch.setattr(train_classifier, "table", lambda rows: found.extend(rows))
        with caplog.at_level("INFO"):
            train_classifier.main()
        return found[0], caplog.messages[-1]

    run(load_config("fp.yaml", ["run.output_dir", "fp"]))
    (folder / "own.yaml").write_text(
        "_BASE_: fp.yaml\nmodel: {weights: fp/model_final.pth}\nrun: {output_dir: own}\n"
    )
    start, told = rows()
    assert (start["optimizer"], told) == ("-", "Evaluating fp/model_final.pth")
    trained = run(load_config("own.yaml"))[0]
    assert trained["loss"] != start["loss"]
    again, told = rows()
    assert (again["loss"], again["optimizer"]) == (trained["loss"], "SGD")
    assert told == "Evaluating own/model_final.pth"
    assert rows("model.weights", "fp/model_final.pth")[0]["loss"] == start["loss"]
