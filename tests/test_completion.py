"""Shell completion, asked of a real bash."""

import shutil
import subprocess
from dataclasses import is_dataclass

import pytest

from bevdet_core.cli import VERBS, main
from bevdet_core.config import all_settings


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    from bevdet_core.completion import script

    return {shell: script(shell, VERBS) for shell in ("bash", "zsh")}


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last word."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    typed = " ".join(f"'{word}'" for word in words)
    ask = f'\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _bevdet; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run([bash, "--norc"], input=script + ask, capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


def test_verbs_options_and_settings_are_offered(scripts):
    script = scripts["bash"]
    assert complete(script, "bevdet", "vis") == ["visualize"]
    assert set(complete(script, "bevdet", "")) == set(VERBS)
    assert complete(script, "bevdet", "visualize", "--sce") == ["--scene"]
    assert complete(script, "bevdet", "train", "--model.num_q") == ["--model.num_queries"]
    assert set(complete(script, "bevdet", "doctor", "--")) == {"--help", "--json"}
    assert complete(script, "bevdet", "train", "conf") == []  # left to file names


def test_every_setting_is_offered_and_nothing_else(scripts):
    offered = complete(scripts["bash"], "bevdet", "train", "--")
    assert len(offered) == len(set(offered))
    own = {"--help", "--help_settings", "--run", "--run_folder", "--resume", "--deterministic", "--print_config"}
    leaves = {f"--{name}" for name, setting in all_settings().items() if not is_dataclass(setting.kind)}
    assert set(offered) == own | leaves


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("evaluate run --precision ", "fp32 bf16 fp16 auto"),
        ("evaluate run --precision f", "fp32 fp16"),
        ("train a.yaml --train.schedule ", "cosine step"),
        ("train a.yaml --train.schedule = ", "cosine step"),  # as bash cuts --train.schedule=
        ("train a.yaml --train.schedule = c", "cosine"),
        ("train a.yaml --train.schedule =", "cosine step"),
        ("evaluate run --data.cbgs t", "true"),
        ("train a.yaml --model.name ", "detr3d petr bevformer detr deformable_detr"),
        ("train a.yaml --train.lr ", ""),
        ("convert a.pth --from deform", "deformable-detr"),
        ("completion ", "bash zsh"),
        ("synthesize ", "nuscenes coco"),
        ("synthesize nuscenes --sc", "--scenes"),
        ("synthesize coco --val", "--val_images"),
        ("synthesize coco --out f --im", "--images --image_size"),
    ],
)
def test_values_and_kinds_are_offered_where_only_some_are_right(scripts, words, offered):
    assert complete(scripts["bash"], "bevdet", *words.split(" ")) == offered.split()


def test_zsh_gets_what_makes_it_understand_bash(scripts):
    assert "bashcompinit" in scripts["zsh"]
    assert "bashcompinit" not in scripts["bash"]


def test_the_verb_prints_the_script(scripts, capsys):
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == scripts["bash"]
    with pytest.raises(SystemExit):
        main(["completion", "fish"])
    assert "fish" in capsys.readouterr().err
