import pytest

from tr_det.detection import QuantTrainer
from tr_det.runtime.results import read_results


def test_training_ends_with_results_of_its_last_evaluation(make_config, check_results):
    cfg = make_config("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    trainer = QuantTrainer(cfg)
    trainer.train()
    results = read_results(cfg.OUTPUT_DIR)
    check_results(results)
    assert results["versions"].keys() >= {"detectron2"}
    assert results["config"]["MODEL"]["QUANT"]["WEIGHT_BITS"] == 4
    assert results["metrics"]["bbox"]["AP"] >= 0
    assert results["cost"]["bops"] > 0
    assert results["tr"]["first_target"] > results["tr"]["last_target"] > 0
    assert (results["seed"], results["updates"]) == (3, 4)


def test_a_run_that_fails_has_no_results(make_config, tmp_path, monkeypatch):
    def fail(trainer):
        raise FloatingPointError

    monkeypatch.setattr(QuantTrainer, "run_step", fail)
    with pytest.raises(FloatingPointError):
        QuantTrainer(make_config()).train()
    assert not (tmp_path / "out/results.json").exists()
