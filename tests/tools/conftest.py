"""Trained runs of both sides, and command lines."""

import pytest

CLASSIFIER = """
model: {name: resnet_cifar, options: {depth: 8, width: 4}}
quant: {bits: W4A3}
solver: {batch_size: 32, iterations: 4, lr: 0.05}
run: {device: cpu}
"""


@pytest.fixture(scope="session")
def classifier_run(tmp_path_factory):
    """Return the folder of a classifier's run."""
    from tr_det.classification.config.reading import load_config
    from tr_det.classification.engine.run import run

    folder = tmp_path_factory.mktemp("classifier")
    (folder / "qat.yaml").write_text(CLASSIFIER)
    run(load_config(folder / "qat.yaml", ["run.output_dir", str(folder / "run")]))
    return folder / "run"


@pytest.fixture(scope="session")
def calibrated_run():
    """Return ``save(cfg, folder) -> folder``: a run that is calibrated, but not trained."""
    from tr_det.detection import QuantCheckpointer, QuantTrainer, calibrate

    def save(cfg, folder):
        model = QuantTrainer.build_model(cfg)
        calibrate(model, QuantTrainer.build_train_loader(cfg), 2)
        QuantCheckpointer(model, str(folder)).save("model_final")
        (folder / "config.yaml").write_text(cfg.dump())
        return folder

    return save


@pytest.fixture(scope="session")
def detector_run(tiny, scenes, calibrated_run, tmp_path_factory):
    """Return the folder of a small detector."""
    folder = tmp_path_factory.mktemp("detector") / "run"
    cfg = tiny.tiny_config(folder, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.005)
    return calibrated_run(cfg, folder)


@pytest.fixture
def call(monkeypatch, capsys):
    """Return ``call(tool, *arguments) -> (exit status, stdout, stderr)``."""
    # Detectron2's console handlers of earlier tests write to streams that pytest has closed.
    monkeypatch.setattr("logging.raiseExceptions", False)

    def call(tool, *arguments):
        status = 0
        try:
            tool.main([*map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call
