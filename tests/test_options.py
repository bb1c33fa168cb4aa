"""Settings on the command line: how they are given, and what is said where they are not right."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from bevdet_core.cli import main

SMALL = "configs/demo/petr.yaml"


def printed(capsys, *words: str) -> dict:
    """The settings that a command line makes."""
    assert main(["train", SMALL, "--print_config", *words]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_settings_are_taken_in_either_way_and_in_any_place(capsys):
    assert main(["train", "--train.lr", "3e-4", SMALL, "--train.epochs=7", "--print_config"]) == 0
    train = yaml.safe_load(capsys.readouterr().out)["train"]
    assert (train["lr"], train["epochs"]) == (3e-4, 7)


def test_a_negative_number_is_a_value(capsys):
    settings = printed(capsys, "--data.augment.rotation", "-.0", "--model.pixels.mean", "[-1, -2.5, 0]")
    assert (settings["data"]["augment"]["rotation"], settings["model"]["pixels"]["mean"]) == (0.0, [-1.0, -2.5, 0.0])
    assert main(["train", SMALL, "--train.lr", "-5.0"]) == 1
    assert capsys.readouterr().err == "bevdet train: train.lr must be at least 0, got -5.0\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.lr"], "--train.lr needs a value"),
        (["--train.epochs", "--run", "a1"], "--train.epochs needs a value, got the option --run"),
        (["--train.epochs", "--train.lr=3"], "--train.epochs needs a value, got the option --train.lr=3"),
        (["--train.epochs", "-h"], "--train.epochs needs a value, got the option -h"),
        (["--train.lr", "1", "--train.lr=2"], "--train.lr is given twice"),
        (
            ["--model.backbone.depth", "18", "--model.backbone={}"],
            "--model.backbone.depth and --model.backbone are given, and one is a part of the other",
        ),
    ],
)
def test_a_setting_without_a_value_of_its_own(words, message, capsys):
    assert main(["train", SMALL, *words]) == 2
    assert capsys.readouterr().err == f"bevdet train: {message}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", SMALL, "--lr", "3"], "--lr 3; did you mean --train.lr?"),
        (["train", SMALL, "--epochs", "3", "--lr=3"], "--epochs 3 --lr=3; did you mean --train.epochs?"),
        (["train", SMALL, "--num-queries", "3"], "--num-queries 3; did you mean --model.num_queries?"),
        (["predict", "run", "a.jpg", "--tresh", "3"], "--tresh 3; did you mean --threshold?"),
        (["predict", "run", "a.jpg", "--batch-size", "3"], "; did you mean --batch_size or --train.batch_size?"),
        (["doctor", "--jsn"], "--jsn; did you mean --json?"),
        (["doctor", "--lr", "3"], "unrecognized arguments: --lr 3"),
        (["train", SMALL, "--xyzzy"], "unrecognized arguments: --xyzzy"),
        (["completion", "bash", "zsh"], "unrecognized arguments: zsh"),
    ],
)
def test_an_option_that_does_not_exist_is_answered_with_what_may_be_meant(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"{message}\n")


def test_what_may_be_meant_is_found_without_anything_heavy():
    code = (
        "import sys\nfrom bevdet_core.cli import main\n"
        f"try:\n    main(['train', {SMALL!r}, '--lr', '3'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'numba', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, "did you mean --train.lr?" in done.stderr) == ("[]\n", True)


@pytest.mark.parametrize(
    "words",
    [
        ["train", SMALL, "--help_settings"],
        ["train", "--help_settings", SMALL],
        ["train", "--run", "a", "--help_settings", "--train.lr", "3", SMALL],
        ["convert", "a.pth", "--config", SMALL, "--help_settings"],
        ["evaluate", "--help_settings", "RUN"],
        ["predict", "RUN/model.safetensors", "a.jpg", "--help_settings"],
    ],
    ids=" ".join,
)
def test_the_settings_of_what_is_named_are_listed(words, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("model: {name: petr}")
    with pytest.raises(SystemExit) as end:
        main([word.replace("RUN", str(tmp_path)) for word in words])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].endswith(".yaml, each as --NAME VALUE:")
    for name in ("model.num_depths", "data.cbgs", "train.lr"):
        assert f"--{name}  " in text
    for name in ("model.bev_shape", "data.short_side", "model", "data", "train", "model.backbone"):
        assert f"--{name}  " not in text


def test_all_settings_are_listed_where_nothing_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        main(["predict", "--help_settings"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("settings of every detector and data set, each as --NAME VALUE:\n")
    for name in ("model.num_queries", "model.two_stage", "model.bev_shape", "data.cbgs", "data.short_side", "train.lr"):
        assert f"--{name}  " in text
    assert main(["train", "none.yaml", "--help_settings"]) == 1
    assert capsys.readouterr().err == "bevdet train: none.yaml: no such configuration\n"
