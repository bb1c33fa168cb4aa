"""The command line: what it does, and what it says when it cannot."""

import json
import signal
import subprocess
import sys

import pytest
from nursery import wait_until
from PIL import Image

from bevdet_core.cli import VERBS, main


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def small(synthetic_root, tmp_path):
    """A configuration file of a small detector on the synthetic set."""
    import yaml
    from test_engine import settings

    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(settings(synthetic_root, train__epochs=1).to_dict()))
    return path


@pytest.mark.parametrize("verb", [[], *([name] for name in VERBS)], ids=lambda words: " ".join(words) or "bevdet")
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([*verb, "--help"])
    assert end.value.code == 0
    assert "usage: bevdet" in capsys.readouterr().out


@pytest.mark.parametrize("words", [*([name, "--help"] for name in VERBS), ["completion", "bash"]], ids=" ".join)
def test_help_loads_nothing_heavy(words):
    """What a shell runs at its start, and a user to look a word up."""
    code = (
        "import sys\nfrom bevdet_core.cli import main\n"
        f"try:\n    main({words})\nexcept SystemExit:\n    pass\n"
        "found = {'torch', 'numpy', 'scipy', 'numba', 'matplotlib'} & sys.modules.keys()\n"
        "print(sorted(found), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_settings_are_checked_before_anything_heavy_is_loaded(tmp_path):
    (tmp_path / "wrong.yaml").write_text("train: {learning_rate: 1}")
    words = [["train", "configs/demo/detr3d.yaml", "--print_config"], ["train", str(tmp_path / "wrong.yaml")]]
    code = (
        "import sys, bevdet_core\nfrom bevdet_core.cli import main\n"
        f"status = [main(each) for each in {words}]\n"
        "found = {'torch', 'scipy', 'numba', 'matplotlib'} & sys.modules.keys()\n"
        "print(status, sorted(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 1] []"


def test_deterministic_runs_are_equal_to_the_bit(small, nursery, tmp_path, capsys):
    from test_engine import assert_same_run

    from bevdet_core.config import load_config

    runs = [tmp_path / "one", tmp_path / "two"]
    for folder in runs:
        child = nursery.start(["train", small, "--run", folder, "--deterministic", "--model.dropout", "0.2"])
        assert child.wait() == 0, child.told()
        assert load_config(folder / "config.yaml").train.deterministic
    assert_same_run(*runs)
    assert run("train", small, "--print_config") == 0
    assert "deterministic: false" in capsys.readouterr().out


def test_print_config_gives_what_train_takes_back(small, tmp_path, capsys):
    from bevdet_core.config import load_config

    assert run("train", small, "--print_config", "--train.lr", "3e-4", "--run", tmp_path / "run") == 0
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "all.yaml") == load_config(small, {"train.lr": 3e-4})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "no verb 'trian'; nearest: train"),
        (["train", "a.yaml", "--run", ""], "--run/--run_folder: a path must not be empty"),
        (["train", "a.yaml", "--run", "README.md"], "README.md is a file, a folder is needed"),
        (["evaluate", "runs/a", "--out", "README.md"], "README.md is a file, a folder is needed"),
        (["evaluate", "runs/a/config.yaml"], "runs/a/config.yaml holds settings, no weights: give a run folder or a"),
        (["export", "a.yml", "--out", "a.onnx"], "a.yml holds settings, no weights"),
        (["predict", "runs/a", "a.json", "--batch_size", "0"], "--batch_size: expected a whole number of at least 1"),
        (["predict", "runs/a", "a.json", "--threshold", "nan"], "--threshold: expected a score from 0 to 1, got 'nan'"),
        (["predict", "runs/a", "a.json", "--threshold", "2"], "--threshold: expected a score from 0 to 1, got '2'"),
        (
            ["synthesize", "coco", "--out", "a", "--imges", "3"],
            "unrecognized arguments: --imges 3; did you mean --images",
        ),
        (["export", "a", "--out", "a.onnx", "--image_size", "0x3"], "expected WIDTHxHEIGHT such as 800x450, got '0x3'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_word_that_cannot_be_meant_is_named(words, told, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "a.yaml", "--deterministic", "--train.deterministic", "false"], "give one of the two"),
        (["visualize", "a.yaml", "--width", "300"], "--width is that of a film: it goes with --scene"),
        (
            ["visualize", "a.yaml", "--scene", "s", "--frames", "f"],
            "--frames writes single samples: it goes with --sam",
        ),
    ],
)
def test_options_that_do_not_go_together(words, told, capsys):
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_the_version_is_told(capsys):
    import bevdet_core

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"bevdet {bevdet_core.__version__}\n"


def test_the_errors_of_the_system_name_the_file_first(small, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file, no folder")
    assert run("visualize", small, "--out", tmp_path / "taken") == 1
    assert capsys.readouterr().err == f"bevdet visualize: {tmp_path / 'taken'}: File exists\n"
    (tmp_path / "broken.yaml").write_text("model:\n  name: [\n")
    assert run("train", tmp_path / "broken.yaml") == 1
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "line 3: " in told


def test_a_reader_that_has_had_enough_is_no_error():
    command = f"{sys.executable} -m bevdet_core.cli train configs/demo/detr3d.yaml --print_config"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[0] == "model:"
    assert done.stderr == ""


def test_sigterm_ends_a_verb_and_leaves_nothing_half_written(tmp_path, nursery):
    child = nursery.start(["synthesize", "nuscenes", "--out", tmp_path / "set", "--scenes", 6])
    wait_until(lambda: list(tmp_path.glob(".set.*.partial/samples/*/*.jpg")), child)
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    assert "bevdet synthesize: stopped by SIGTERM" in child.told()
    assert not list(tmp_path.iterdir())


def test_wrong_settings_and_files_end_in_one_line(small, tmp_path, capsys):
    cases = [
        (["train", tmp_path / "none.yaml"], ["none.yaml", "no such configuration"]),
        (["train", small, "--model.num_querys", "3"], ["model.num_querys", "model.num_queries"]),
        (["train", small, "--data.root", tmp_path / "nowhere", "--run", tmp_path / "r"], ["nowhere"]),
        (["evaluate", tmp_path / "none.safetensors"], ["none.safetensors", "no such run folder or checkpoint"]),
        (["evaluate", tmp_path], ["no model.safetensors"]),
        (["visualize", small, "--samples", "99", "--out", tmp_path / "p"], ["'99'", "0 to 3"]),
    ]
    for words, expected in cases:
        assert run(*words) == 1, words
        told = capsys.readouterr().err
        assert told.startswith(f"bevdet {words[0]}: "), told
        assert "Traceback" not in told
        for word in expected:
            assert word in told, (word, told)


@pytest.mark.parametrize(
    ("verb", "told"),
    [("train", "interrupted; --resume goes on from the last checkpoint"), ("evaluate", "interrupted")],
)
def test_ctrl_c_ends_in_one_line(verb, told, monkeypatch, capsys):
    def interrupted(argv):
        """Be stopped"""
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, verb, interrupted)
    assert run(verb) == 130
    assert capsys.readouterr().err == f"\nbevdet {verb}: {told}\n"


def test_synthesize_refuses_a_folder_in_use(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert run("synthesize", "nuscenes", "--out", tmp_path, "--scenes", "2") == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "precious"
    with pytest.raises(SystemExit):
        run("synthesize", "nuscenes", "--out", tmp_path, "--image_size", "big")
    assert "WIDTHxHEIGHT" in capsys.readouterr().err


def test_from_training_to_pictures(small, synthetic_root, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("train", small, "--run", folder, "--train.log_steps=2") == 0
    assert "construction_vehicle" in capsys.readouterr().out
    assert (folder / "curve.png").is_file()

    assert run("evaluate", folder, "--out", tmp_path / "scores") == 0
    assert "mAP" in (tmp_path / "scores" / "metrics.json").read_text()

    before = (folder / "evaluation" / "metrics.json").read_bytes()
    assert run("evaluate", folder) == 0
    assert run("evaluate", folder, "--data.val_split", "mini_train", "--data.classes", "[car]") == 1
    told = capsys.readouterr().err
    assert f"{folder / 'evaluation'} holds the scores of another evaluation, which differs in split, classes" in told
    assert run("evaluate", folder / "checkpoints" / "step-00000004.safetensors", "--out", folder / "evaluation") == 0
    assert run("evaluate", folder) == 1
    assert "which differs in weights: name another folder with --out, or" in capsys.readouterr().err
    assert json.loads(before)["evaluated"]["split"] == "mini_val"

    for source in (small, folder):
        out = tmp_path / f"drawn-{source.stem}"
        assert run("visualize", source, "--samples", "0", "3", "--out", out, "--frames", tmp_path / "frames") == 0
        assert len(list(out.glob("*.png"))) == 2

    assert run("predict", folder, tmp_path / "frames" / "3.json", "--out", tmp_path / "found", "--threshold", "0") == 0
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    (boxes,) = found.values()
    assert {"label", "score", "box"} == set(boxes[0])
    with Image.open(tmp_path / "found" / "3.png") as picture:
        assert picture.width > 500
