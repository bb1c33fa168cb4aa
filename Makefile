# make demo and make test set up all that they need: Python, make and git are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test soak lint docs clean

# A detector from nothing: render a world, train on it, score it on scenes that it has not seen, draw what it finds.
demo: $(VENV)/demo.stamp
	$(RM) -r demo/run
	$(BIN)/bevdet synthesize nuscenes --out demo/nuscenes --scenes 440 --val_scenes 40 --frames 3 --image_size 400x225
	$(BIN)/bevdet train configs/demo/detr3d.yaml --run demo/run
	$(BIN)/bevdet visualize demo/run --samples 10 50 90 --out demo/pictures --frames demo/frames

test: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

# What takes hours in place of minutes to find: thousands of damaged files, a wheel in a clean environment.
soak: $(VENV)/dev.stamp
	$(BIN)/pytest -m soak
	$(BIN)/python tools/check_wheel.py

# The manual and the API reference, into site/; a link that leads nowhere is an error.
docs: $(VENV)/docs.stamp
	$(BIN)/mkdocs build

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[nuscenes]"
	touch $@

$(VENV)/dev.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[nuscenes,coco,export,video,viz,docs,dev]"
	touch $@

$(VENV)/docs.stamp: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

clean:
	$(RM) -r $(VENV) build dist site
