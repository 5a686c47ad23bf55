import pytest

from tr_det.classification.config.keys import ClassifierConfig, QuantSection
from tr_det.classification.config.reading import from_tree, load_config, to_yaml

SGDT = ["solver.optimizer", "SGDT"]


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["solver.lrr", "1"], r"solver\.lrr: unknown key; did you mean solver\.lr"),
        (["zebra", "1"], r"zebra: unknown key; must be one of model, quant"),
        (["MODEL.NAME", "x"], r"MODEL: unknown key; a detector's config is for tools/train_net"),
        (["solver.lr", "fast"], r"solver\.lr='fast': must be a number"),
        (["solver.lr", "-1"], r"solver\.lr=-1\.0: must be positive and finite"),
        (["solver.lr", "true"], r"solver\.lr=True: must be a number"),
        (["solver.epochs", "1.5"], r"solver\.epochs=1\.5: must be an integer"),
        (["solver.nesterov", "'no'"], r"solver\.nesterov='no': must be true or false"),
        (["quant.weight_options", "[]"], r"quant\.weight_options=\[\]: must be a mapping"),
        (["data.root", "a${"], r"data\.root='a\$\{': must be a value without \$\{"),
        (["data.root", "???"], r"data\.root='\?\?\?': must be a value without"),
        (["solver.epochs"], r"solver\.epochs: a key without a value"),
        (["solver.optimizer", "SDG"], r"optimizer='SDG': must be .*; did you mean 'SGD'\?"),
        (["solver.betas", "[a, b]"], r"solver\.betas=.*: must be a list; each: a number"),
        (["solver.no_decay", "[[]]"], r"solver\.no_decay=\[\[\]\]: must be a list; each: a string"),
        (["solver.lr", "1", "--resume"], "^--resume: must come before the KEY VALUE pairs"),
        ([*SGDT, "quant.bits", "W32A2"], r"optimizer='SGDT': must be SGD with .*bits=W32A2"),
        (["model.new_last_layer", "true"], r"new_last_layer=True: must be false without weights"),
        (["run.seed", str(2**64)], r"run\.seed=\d+: must be from 0 to 2\*\*63 - 1"),
        (["data.image_size", "1000000"], r"data\.image_size=1000000: must be from 0 to 4096"),
        (["solver.betas", "[0.9]"], r"solver\.betas=\(0\.9,\): must be two numbers"),
        (["quant.bits", "4"], r"quant\.bits='4': must be FP or of the form W2A2"),
        (["model", "resnet"], r"model='resnet': must be a mapping"),
        (["model.name.x", "1"], r"model\.name=\{'x': 1\}: "),
        (["data.workers", "[1"], r"data\.workers='\[1': must be valid YAML"),
        (["tr.factor", "Auto"], r"tr\.factor='Auto': must be in \(0, 1\], or 'auto'"),
        (["tr.momentum", "1"], r"tr\.momentum=1\.0: must be None or in \[0, 1\); -1"),
        (["solver.loss", "distributional"], r"solver\.teacher='': must be given"),
        (["model.weights", "a", "model.pretraining", "b"], r"model\.weights='a': must be ''"),
        (
            [*SGDT, "quant.bits", "W2A2", "quant.learn_weight_scale", "true"],
            r"quant\.learn_weight_scale=True: must be false or 'auto' with solver\.optimizer=SGDT",
        ),
    ],
)
def test_an_error_names_the_key_its_value_and_what_is_allowed(write, overrides, message):
    path = write("a.yaml", "model: {name: x}")
    with pytest.raises(ValueError, match=message) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["007", "2024_01_02", "1e3", "on", "a #2", "[raw] b", "@x", "*x"])
def test_a_string_that_yaml_would_convert_stays_as_it_is(write, name):
    path = write("a.yaml", "model: {name: x}")
    for text in (name, f"'{name}'"):
        assert load_config(path, ["run.output_dir", text]).run.output_dir == name


@pytest.mark.parametrize("text", ["data: {root: '???'}", "model: {pretraining: 5}"])
def test_a_file_with_a_value_of_another_kind_is_refused(write, text):
    with pytest.raises(ValueError, match=r"(data\.root|model\.pretraining)=.*: must be a "):
        load_config(write("a.yaml", text))


def test_files_build_on_others_and_the_command_line_wins(write):
    write("one.yaml", "solver: {lr: 0.5, momentum: 0.8}\nmodel: {pretraining: fp.yaml}")
    write("two.yaml", "solver: {momentum: 0.7}\nmodel: {options: {width: 4}}")
    path = write("leaf.yaml", "_BASE_: [one.yaml, two.yaml]\nsolver: {weight_decay: 2e-5}")
    overrides = ["solver.warmup", "3", "solver.weight_decay", "1e-3", "run.device", ""]
    config = load_config(path, [*overrides, "model.options", "{depth: 8}"])
    solver = config.solver
    assert (config.model.options, config.run.device) == ({"depth": 8}, "")
    assert (solver.lr, solver.momentum, solver.warmup) == (0.5, 0.7, 3)
    assert solver.weight_decay == 1e-3
    assert config.model.pretraining == str(path.parent / "fp.yaml")
    assert config.run.output_dir.endswith(f"{path.parent.name}/leaf_fp")


def test_epochs_are_refused_where_iterations_take_precedence(write):
    path = write("a.yaml", "solver: {iterations: 600}")
    with pytest.raises(ValueError, match=r"solver\.epochs=3: must be given .* 0, .* to 600, which"):
        load_config(path, ["solver.epochs", "3"])
    config = load_config(path, ["solver.epochs", "3", "solver.iterations", "0"])
    assert (config.solver.epochs, config.solver.iterations) == (3, 0)


def test_a_missing_file_is_named(write):
    with pytest.raises(FileNotFoundError, match=r"other\.yaml: no such file"):
        load_config(write("a.yaml", "_BASE_: other.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: a.yaml", r"a\.yaml: builds on itself by _BASE_$"),
        ("_BASE_: secret.txt", r"secret\.txt: must be a mapping of keys$"),
        ("model: &m {options: *m}", r"a\.yaml: is nested more than 30 deep, or contains itself$"),
        ("model: {options: {a: ['${x']}}", r"^model\.options\.a='\$\{x': must be a value without"),
        ("model.name: x", r"^model\.name: unknown key; did you mean model$"),
        ("model: {a.b: x}", r"^model\.a\.b: unknown key; must be one of model\.name"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(write, text, message):
    write("secret.txt", "words that are not for everybody")
    with pytest.raises(ValueError, match=message):
        load_config(write("a.yaml", text))


def test_a_written_config_reads_the_same(write, tmp_path):
    config = load_config(
        write(
            "a.yaml",
            "tr: {factor: auto}\nsolver: {betas: [0.5, 0.9], no_decay: [x]}\n"
            "model: {pretraining: fp.yaml}",
        )
    )
    run = tmp_path / "run/config.yaml"  # in another folder than the file that it came from
    run.parent.mkdir()
    run.write_text(to_yaml(config))
    assert load_config(run) == config


def test_weight_scales_are_learned_under_plain_optimizers_and_with_tr_scales_by_weight():
    def learns(tree):
        return from_tree(ClassifierConfig, tree).learn_weight_scale

    assert learns({"solver": {"optimizer": "Adam"}})
    scheduled = {"solver": {"optimizer": "AdamT"}, "quant": {"bits": "W2A2"}}
    assert not learns(scheduled)
    assert learns({**scheduled, "tr": {"scales": "by_weight"}})
    frozen = {"solver": {"optimizer": "Adam"}, "quant": {"learn_weight_scale": False}}
    assert not learns(frozen)


@pytest.mark.parametrize(
    ("bits", "expected"), [("FP", (32, 32)), ("W2A3", (2, 3)), ("w32a1", (32, 1))]
)
def test_bits_are_read_as_written(bits, expected):
    section = QuantSection(bits=bits)
    assert (section.weight_bits, section.act_bits) == expected
    assert section.enabled == (bits != "FP")
