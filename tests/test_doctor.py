"""What `bevdet doctor` finds, and what it advises."""

import importlib.metadata
import json

import pytest
import torch

from bevdet_core import doctor, precision
from bevdet_core.cli import main


@pytest.fixture
def requirements(monkeypatch):
    """Let the package ask for other things than it does."""
    return lambda *lines: monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(lines))


def found(name: str) -> doctor.Check:
    (check,) = (check for check in doctor.examine().checks if check.name == name)
    return check


def test_this_machine_is_healthy_and_says_so(capsys):
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for word in ("machine", "torch", "numpy", "operator, reference back end", "operator, cpu back end"):
        assert word in told


def test_paths_are_written_whole_on_a_narrow_terminal(monkeypatch, capsys):
    path = "/opt/" + "long/" * 40 + "python"
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(doctor.sys, "executable", path)
    assert main(["doctor"]) == 0
    assert f"({path})\n" in capsys.readouterr().out


@pytest.mark.parametrize(("units", "meaning"), [("bf16", "bf16: which"), ("fp32", "fp32: there are no units for bf16")])
def test_what_automatic_precision_means_here_is_told(monkeypatch, units, meaning):
    monkeypatch.setattr(precision, "native", lambda: units)
    assert doctor.examine().machine["--train.precision auto"].startswith(meaning)


def test_json_has_all_that_is_told(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"]
    assert report["versions"]["torch"] == importlib.metadata.version("torch")
    assert {"name", "state", "detail", "remedy"} == set(report["checks"][0])
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert states["operator, reference back end"] == states["operator, cpu back end"] == "ok"
    assert states["operator, cuda back end"] == ("ok" if torch.cuda.is_available() else "absent")


def test_a_required_package_that_is_missing_or_too_old_is_an_illness(requirements, capsys):
    requirements("torch>=1", "numpy>=99", "no-such-package>=2")
    check = found("required packages")
    assert check.state == "broken"
    assert f"numpy {importlib.metadata.version('numpy')} is not >=99" in check.detail
    assert "no-such-package is not installed" in check.detail
    assert "torch" not in check.detail
    assert main(["doctor"]) == 1
    assert "pip install 'bevdet-core'    # required packages" in capsys.readouterr().out


def test_an_extra_that_is_missing_is_none(requirements, capsys):
    requirements("torch>=1", 'no-such-package; extra == "coco"', 'other-package; extra == "dev"')
    assert found("COCO metric") == doctor.Check(
        "COCO metric", "absent", "no-such-package is not installed", "pip install 'bevdet-core[coco]'"
    )
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "pip install 'bevdet-core[coco]'    # COCO metric" in told
    assert "other-package" not in told


def test_the_package_itself_may_not_be_installed(monkeypatch):
    def nobody(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nobody)
    monkeypatch.setattr(importlib.metadata, "requires", nobody)
    check = found("package")
    assert check.state == "absent"
    assert check.remedy.startswith("pip install -e ")


def test_an_operator_that_computes_nonsense_is_an_illness(monkeypatch):
    import bevdet_ops

    monkeypatch.setattr(bevdet_ops, "multi_camera_deformable_attention", lambda *a: torch.zeros(1, 1, 8))
    check = found("operator, cpu back end")
    assert check.state == "broken"
    assert "should be 5.5" in check.detail
    assert not doctor.examine().healthy


def test_back_ends_bring_their_own_advice(monkeypatch):
    import bevdet_ops

    status = {"reference": "available", "cpu": "numba is not installed (pip install numba)"}
    status["cuda"] = "CuPy is not installed: pip install cupy-cuda12x"
    monkeypatch.setattr(bevdet_ops, "backend_status", lambda: status)
    assert found("operator, cpu back end").remedy == "pip install numba"
    assert found("operator, cuda back end").remedy == "pip install cupy-cuda12x"
    assert found("operator, cuda back end").state == "absent"
