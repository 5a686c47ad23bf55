import logging

import pytest
from PIL import Image

from tr_det.classification.config.reading import load_config
from tr_det.classification.engine.run import evaluate_only, run


def qat(*overrides):
    return load_config("qat.yaml", overrides)


def test_evaluation_alone_gives_what_training_ended_with(folder):
    trained = run(qat())
    evaluated = evaluate_only(qat())
    for part in ("config", "metrics", "cost", "updates"):
        assert evaluated[part] == trained[part]


def test_a_full_precision_checkpoint_is_calibrated_before_it_is_evaluated(folder):
    longer = ["run.output_dir", "fp", "solver.iterations", "60"]
    learnt = run(load_config("fp.yaml", longer))["metrics"]
    weights = ["model.pretraining", "", "model.weights", "fp/model_final.pth"]
    quantized = evaluate_only(qat(*weights, "quant.bits", "W8A8"))["metrics"]
    assert learnt["accuracy"] > 40
    assert quantized["accuracy"] > learnt["accuracy"] - 15


def test_evaluation_without_any_checkpoint_is_refused(folder):
    with pytest.raises(ValueError, match=r"--eval-only: .*has no checkpoint"):
        evaluate_only(qat())
    weights = ["model.pretraining", "", "model.weights", "fp.pth"]
    with pytest.raises(ValueError, match=r"--eval-only: .*has no checkpoint"):
        evaluate_only(qat(*weights), resume=True)


@pytest.fixture
def _own_logging():
    """Undo what a tool sets up for its process."""
    loggers = [logging.getLogger(), logging.getLogger("fvcore")]
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.mark.usefixtures("_own_logging")
def test_evaluation_takes_the_trained_weights_unless_others_are_named(folder, monkeypatch, caplog):
    import train_classifier

    table = train_classifier.table

    def evaluated(*options):
        found = []
        arguments = ["--config-file", "own.yaml", "--eval-only", *options]
        monkeypatch.setattr("sys.argv", ["train_classifier.py", *arguments])
        monkeypatch.setattr(train_classifier, "table", found.extend)
        with caplog.at_level("INFO"):
            train_classifier.main()
        optimizer = table(found).splitlines()[3].split()[2]
        return found[0]["metrics"]["loss"], optimizer, caplog.messages[-1]

    run(load_config("fp.yaml", ["run.output_dir", "fp"]))
    (folder / "own.yaml").write_text(
        "_BASE_: fp.yaml\nmodel: {weights: fp/model_final.pth}\nrun: {output_dir: own}\n"
    )
    start, *shown = evaluated()
    assert shown == ["-", "Evaluating fp/model_final.pth"]
    trained = run(load_config("own.yaml"))["metrics"]["loss"]
    assert trained != start
    assert evaluated() == (trained, "SGD", "Evaluating own/model_final.pth")
    assert evaluated("model.weights", "fp/model_final.pth")[0] == start


def test_data_of_other_classes_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root, names in (("a", ("ant", "bee", "cat")), ("b", ("ant", "cat", "dog"))):
        for part in ("train", "test"):
            for name in names:
                (tmp_path / root / part / name).mkdir(parents=True)
                for number in range(4):
                    image = Image.new("RGB", (8, 8), (60 * number, 0, 0))
                    image.save(tmp_path / root / part / name / f"{number}.png")
    (tmp_path / "a.yaml").write_text(
        "model: {name: resnet_cifar, options: {depth: 8, width: 4}}\n"
        "solver: {batch_size: 4, iterations: 2}\n"
        "data: {name: folders, root: a, image_size: 8, workers: 0}\n"
        "run: {checkpoint_period: 1, device: cpu, output_dir: run}\n"
    )
    run(load_config("a.yaml"))
    other = load_config("a.yaml", ["data.root", "b"])
    message = r"data\.root='b': must have the classes of .*; only one has \['bee', 'dog'\]"
    with pytest.raises(ValueError, match=message):
        evaluate_only(other)
    (tmp_path / "run/results.json").unlink()
    (tmp_path / "run/model_final.pth").unlink()
    with pytest.raises(ValueError, match=message):
        run(other, resume=True)
