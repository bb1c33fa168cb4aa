"""What the pages say: links lead somewhere, commands parse, files and names exist."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import yaml

import bevdet_core
import bevdet_ops
from bevdet_core import arguments, cli, config
from bevdet_core.config import DATA, MODELS, ConfigError, load_config

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "ops/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
MADE_BY_READERS = {"bevdet_core/models/multi_point.py"}  # files that a page tells its reader to write
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        place = page.parent / path if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    folders = "bevdet_core|ops|configs|tools|tests|docs"
    named = set(re.findall(rf"(?<![\w/.])((?:{folders})/[\w*./-]*\w/?)(?![\w*])", page.read_text())) - MADE_BY_READERS
    assert [name for name in sorted(named) if not list(ROOT.glob(name.rstrip("/")))] == []


@pages
def test_python_compiles(page: Path) -> None:
    for language, code in FENCE.findall(page.read_text()):
        if language == "python":
            compile(code, str(page), "exec")


class Parsed(BaseException):
    """Ends a verb as soon as its command line is understood."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


class Rest:
    """In the place of a parser: keeps the words that are no settings."""

    exit = sys.exit

    @staticmethod
    def parse_args(words: list[str]) -> list[str]:
        return words


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `bevdet`, or after `-m bevdet_core.cli`, of every command line that a page shows."""
    text = page.read_text()
    lines = [code for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)) if len(code.split()) > 3]
    for language, code in FENCE.findall(text):
        if language in ("", "bash"):
            lines += code.replace("\\\n", " ").splitlines()
    for line in lines:
        for command in re.findall(r"(?:^|exec +)(?:bevdet|.*-m bevdet_core\.cli) +([a-z].*)", line.strip()):
            yield shlex.split(command.removesuffix("'"), comments=True)


def check_settings(file: Path | None, overrides: dict[str, str]) -> None:
    """Check that a configuration takes settings; without one, that some configuration does."""
    if file is not None:
        load_config(file, overrides)
        return
    problems = []
    for kinds in [(model, data) for model in MODELS for data in DATA]:
        try:
            load_config({"model": {"name": kinds[0]}, "data": {"name": kinds[1]}}, overrides)
        except ConfigError as error:
            problems.append(error)
        else:
            return
    raise problems[0]


@pages
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    understand = argparse.ArgumentParser.parse_args

    def stop(self, words=None):
        raise Parsed(understand(self, words))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    for verb, *words in commands(page):
        try:
            rest, overrides = arguments.parse(Rest, words)  # type: ignore[arg-type]
            cli.VERBS[verb](rest)
        except Parsed as parsed:
            options = vars(parsed.options)
        except SystemExit as end:
            if end.code:
                raise
            continue  # --help and the like
        sources = [options.get(name) for name in ("config", "source")]
        files = [path for path in sources if path is not None and path.suffix == ".yaml" and path.parts[0] == "configs"]
        assert [str(path) for path in files if not (ROOT / path).is_file()] == []
        check_settings(ROOT / files[0] if files else None, overrides)


def documented() -> list[str]:
    """The names that the API pages show."""
    found = (re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE) for page in (ROOT / "docs/api").glob("*.md"))
    return [name for names in found for name in names]


def resolve(name: str) -> object:
    """The module, class or function of a dotted name."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            thing = getattr(thing, part)
        return thing
    raise ModuleNotFoundError(name)


def test_documented_names_exist_and_explain_themselves() -> None:
    names = documented()
    assert len(names) == len(set(names))
    for name in names:
        assert inspect.getdoc(resolve(name)), name


def test_public_names_are_documented() -> None:
    shown = {name.split(".")[-1] for name in documented()}
    settings = [name for name in config.__all__ if is_dataclass(getattr(config, name)) and name != "Range3d"]
    assert {*bevdet_core.__all__, *bevdet_ops.__all__, *settings} <= shown


def test_the_site_has_every_page() -> None:
    def leaves(entry: object) -> Iterator[str]:
        for item in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ():
            yield from [item] if isinstance(item, str) else leaves(item)

    nav = set(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert nav == written | {"operator.md", "changelog.md", "contributing.md"}


def test_the_site_builds_and_all_its_links_lead_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Detect objects." in (tmp_path / "api" / "detector.html").read_text()
    assert (tmp_path / "operator.png").is_file()
