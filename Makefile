# Everything a fresh machine needs is Python 3.11 or newer, make and git.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo studio test test-cuda format clean

demo: .venv/core.installed  ## Ask the embedded model about a photograph, unpruned and pruned.
	$(BIN)/tops compare tops_engine/mini/sample.jpg "What number is written?" --model mini --methods tops,random --keep 0.222 --map demo.png

studio: .venv/studio.installed  ## Wire nodes in the browser: the ComfyUI frontend with the TOPS nodes.
	$(BIN)/tops studio --open

test: .venv/dev.installed  ## Lint, types and tests.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

test-cuda: .venv/dev.installed  ## Only the tests that need an NVIDIA GPU.
	$(BIN)/pytest -m cuda -rs

format: .venv/dev.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist demo.png

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/core.installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing tops-engine and what it needs into .venv ..."
	$(PIP) --editable .
	@touch $@

.venv/studio.installed: .venv/core.installed
	@echo "Installing the frontend into .venv ..."
	$(PIP) --editable ".[studio,video]"
	@touch $@

.venv/dev.installed: .venv/core.installed
	@echo "Installing the tools for tests into .venv ..."
	$(PIP) --editable ".[dev]"
	@touch $@
