"""The command line: what it does with good and, above all, with bad input."""

import pytest
import torch
import train_net

from tr_det.detection import QuantCheckpointer, QuantTrainer, calibrate
from tr_det.runtime.processes import only_writer

CONFIG = "configs/digits/retinanet_R18_half_w4a4_sgdt.yaml"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Return ``run(*arguments) -> (exit status, last line of stderr)``."""

    # Detectron2's console handlers of earlier tests write to streams that pytest has closed.
    monkeypatch.setattr("logging.raiseExceptions", False)

    def call(*arguments):
        opts = ["OUTPUT_DIR", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", ["train_net.py", *map(str, arguments), *opts])
        status = 0
        try:
            train_net.invoke_main()
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        lines = [line for line in captured.err.splitlines() if line.strip()]
        return status, lines[-1] if lines else ""

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config-file: must name a YAML file"),
        (["--config-file", "nowhere.yaml"], "nowhere.yaml"),
        (["MODEL.QUANT.BITS", 4], "Non-existent key: MODEL.QUANT.BITS"),
        (["MODEL.QUANT.WEIGHT_BITS", 0], "MODEL.QUANT.WEIGHT_BITS=0: must be"),
        (["MODEL.QUANT.WEIGHT_BITS", "four"], "MODEL.QUANT.WEIGHT_BITS"),
        (["DATASETS.TEST", "('nothing',)"], "DATASETS.TEST='nothing': must be a dataset"),
        (["DATASETS.TRAIN", "('coco_2017_train',)"], "TRAIN='coco_2017_train': json_file"),
        (["SOLVER.OPTIMIZER", "SGDX"], "SOLVER.OPTIMIZER='SGDX': must be one of"),
        (["SOLVER.OPTIMIZER", "SGD", "SOLVER.TR.LOG_PERIOD", 0], "SOLVER.TR.LOG_PERIOD=0: must be"),
        (["MODEL.QUANT.WEIGHT_QUANTIZER", "lsqq"], "WEIGHT_QUANTIZER='lsqq': must be one of"),
        (["MODEL.QUANT.WEIGHT_OPTIONS", "['per_channel=3']"], "OPTIONS: per_channel=3: must"),
        (["SOLVER.METHODS", "['frezing']"], "SOLVER.METHODS='frezing': must be one of"),
        (["SOLVER.METHODS", "['freezing threshold=2']"], "SOLVER.METHODS: threshold=2: must be in"),
        (["SOLVER.TR.FACTOR", "1.5"], "SOLVER.TR.FACTOR=1.5: must be in (0, 1]"),
        (["--eval-only", "MODEL.WEIGHTS", ""], "MODEL.WEIGHTS='': must be given to --eval-only"),
        (["--eval-only", "--resume"], "out has no checkpoint to evaluate"),
        (
            ["MODEL.WEIGHTS", "nowhere.pth"],
            "MODEL.WEIGHTS='nowhere.pth': must be a file that exists",
        ),
    ],
)
def test_bad_input_gives_one_line_before_anything_is_built(run, monkeypatch, arguments, message):
    monkeypatch.setattr(QuantTrainer, "build_model", lambda cfg: pytest.fail("built"))
    if arguments and arguments[0] != "--config-file":
        arguments = ["--config-file", CONFIG, *arguments]
    status, line = run(*arguments)
    assert status == 2
    assert line.startswith("error: ")
    assert message in line


def test_a_mistake_that_only_a_model_shows_is_one_line_too(run, tiny, scenes):
    data = ("DATASETS.TRAIN", f"('{tiny.TRAIN}',)", "DATASETS.TEST", f"('{tiny.VAL}',)")
    status, line = run("--config-file", CONFIG, *data, "MODEL.QUANT.LEARN_WEIGHT_SCALE", "True")
    assert status == 2
    assert "LEARN_WEIGHT_SCALE=True: must be False" in line


def test_a_folder_has_one_writer(run, tiny, scenes, tmp_path):
    data = ("DATASETS.TRAIN", f"('{tiny.TRAIN}',)", "DATASETS.TEST", f"('{tiny.VAL}',)")
    with only_writer(tmp_path / "out", "x"):
        status, line = run("--config-file", CONFIG, *data, "MODEL.WEIGHTS", "")
    assert status == 2
    assert line.startswith(f"error: OUTPUT_DIR='{tmp_path / 'out'}': another run writes there")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("text", "message"), [("MODEL: {QUANT: {BIT: 4}}", "MODEL.QUANT.BIT"), ("MODEL: {", "bad.yaml")]
)
def test_a_config_that_cannot_be_read_is_refused(run, tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    status, line = run("--config-file", tmp_path / "bad.yaml")
    assert status == 2
    assert message in line


def test_eval_only_needs_no_training_set_for_a_quantized_checkpoint(
    run, make_config, tiny, tmp_path, capsys
):
    cfg = make_config("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    model = QuantTrainer.build_model(cfg)
    calibrate(model, QuantTrainer.build_train_loader(cfg), 1)
    QuantCheckpointer(model, str(tmp_path)).save("w4")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cfg.DATASETS.TRAIN = ("no_such_dataset",)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    weights = tmp_path / "w4.pth"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.yaml").write_text("a run's")
    status, _ = run(
        "--config-file", tmp_path / "config.yaml", "--eval-only", "MODEL.WEIGHTS", weights
    )
    assert status == 0
    assert (tmp_path / "out/inference/coco_instances_results.json").exists()
    assert (tmp_path / "out/config.yaml").read_text() == "a run's"
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_eval_only_calibrates_a_full_precision_checkpoint(run, make_config, tmp_path, caplog):
    cfg = make_config("MODEL.QUANT.ENABLED", False, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    QuantCheckpointer(QuantTrainer.build_model(cfg), str(tmp_path)).save("fp")
    cfg.MODEL.QUANT.ENABLED = True
    (tmp_path / "config.yaml").write_text(cfg.dump())
    weights = tmp_path / "fp.pth"
    status, _ = run(
        "--config-file", tmp_path / "config.yaml", "--eval-only", "MODEL.WEIGHTS", weights
    )
    assert status == 0
    assert (
        "Scales and batch norms are of 2 batches"
        in (tmp_path / "out/inference/log.txt").read_text()
    )


def test_eval_only_of_a_run_sees_what_the_run_has_evaluated(run, make_config, tmp_path):
    cfg = make_config("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    model = QuantTrainer.build_model(cfg)
    calibrate(model, QuantTrainer.build_train_loader(cfg), 1)
    checkpointer = QuantCheckpointer(model, str(tmp_path / "out"))
    for name in ("model_averaged", "model_final"):
        checkpointer.save(name)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    status, _ = run("--config-file", tmp_path / "config.yaml", "--eval-only", "--resume")
    assert status == 0
    log = (tmp_path / "out/inference/log.txt").read_text()
    assert "out/model_averaged.pth" in log
    assert "out/model_final.pth" not in log
