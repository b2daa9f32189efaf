# Everything a fresh machine needs is Python 3.11 or newer, make and git.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
OLDEST := .venv-oldest
# Python compiles what it imports. Compiling all packages would take another minute.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

.PHONY: help demo studio test test-full lint pytest fuzz test-cuda test-vllm test-vllm-newest test-oldest eval test-eval format docs clean
.PHONY: record record-nodes record-checked record-savings record-docs record-accuracy record-depth

help:  ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-15s  %s\n", $$1, $$2 }'

demo: .venv/core.installed  ## Ask the embedded model about a photograph, unpruned and pruned.
	$(BIN)/tops compare tops_engine/mini/sample.jpg "What number is written?" --model mini --methods tops,random --keep 0.222 --map demo.png

studio: .venv/studio.installed  ## Wire nodes in the browser: the ComfyUI frontend with the TOPS nodes.
	$(BIN)/tops studio --open

test: lint pytest  ## Lint, types and tests.

lint: .venv/dev.installed  ## Only lint, the directions of imports, and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy

pytest: .venv/dev.installed  ## Only the tests.
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --dist loadfile

test-full: .venv/dev.installed  ## All tests, also those that repeat a guarantee for another combination.
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --dist loadfile -m "full or not full"

fuzz: .venv/dev.installed  ## 10,000 damaged inputs and ten minutes of threads that cancel, others each day; TOPS_FUZZ_SEED repeats those of another day.
	TOPS_FUZZ=10000 TOPS_FUZZ_SEED=$${TOPS_FUZZ_SEED:-$$(date +%Y%j)} OMP_NUM_THREADS=1 \
	  $(BIN)/pytest --numprocesses logical --dist loadfile tests/fuzz

test-cuda: .venv/dev.installed  ## Only the tests that need an NVIDIA GPU.
	$(BIN)/pytest -m cuda -rs

test-vllm: .venv-vllm/installed  ## Only the tests with vLLM, in an environment of its own; its CPU build is 0.5 GB with torch.
	.venv-vllm/bin/pytest --override-ini addopts="--import-mode=importlib -q" -m vllm -rs tests/integrations/vllm_tops

test-vllm-newest: .venv-vllm/newest  ## The same tests with the sources of vLLM 0.33, whose wheel has 0.3 GB.
	PYTHONPATH=$(CURDIR)/.venv-vllm/newest .venv-vllm/bin/pytest --override-ini addopts="--import-mode=importlib -q" \
	  -m vllm -rs tests/integrations/vllm_tops

test-oldest: $(OLDEST)/installed  ## Only the tests of the chat model, with the oldest LangChain and transformers that are supported.
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest --numprocesses logical --dist loadfile tests/integrations/langchain_tops

eval: .venv-eval/installed  ## Make an environment with lmms-eval for `tops reproduce`; some GB of downloads.

test-eval: .venv-eval/installed  ## Only the tests with lmms-eval, in an environment of its own.
	.venv-eval/bin/pytest --override-ini addopts="--import-mode=importlib -q" -m eval -rs tests/integrations/lmms_eval_tops

record-nodes: .venv/dev.installed  ## Write the nodes' definitions and the tables of their help pages.
	$(BIN)/python -m tools.record_nodes

record-checked: .venv/dev.installed  ## Run the tests of all families and write what they show of each.
	$(BIN)/python -m tools.record_checked

record-savings: .venv/dev.installed  ## Compute what pruning saves on the sizes of published checkpoints.
	$(BIN)/python -m tools.record_savings

record-docs: .venv/dev.installed  ## Write the generated tables of README and docs.
	$(BIN)/python -m tools.record_docs

record-accuracy: .venv/dev.installed  ## Measure all methods on 500 scenes (hours; goes on where it stopped) and write the tables.
	$(BIN)/python -m tools.record_accuracy

record-depth: .venv/dev.installed  ## Train language models of 16 and 24 layers before mini's tower (hours; goes on where it stopped) and measure them.
	OMP_NUM_THREADS=1 nice $(BIN)/python -m benchmarks.train_depth features
	OMP_NUM_THREADS=1 nice $(BIN)/python -m benchmarks.train_depth train
	OMP_NUM_THREADS=1 nice $(BIN)/python -m benchmarks.depth_report --json benchmarks/results/depth.json --plot docs/depth.png

record: record-checked record-nodes record-savings record-docs  ## Write everything that is recorded or generated.

docs: .venv/docs.installed  ## Build the documentation site in site/; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/dev.installed  ## Fix what ruff can fix, and format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The constraints are not for this one: vLLM pins many of the same packages to other versions. torchaudio and torchcodec
# come with it but do not load beside a torch without CUDA; nothing here listens.
.venv-vllm/newest: .venv-vllm/installed
	.venv-vllm/bin/python tests/integrations/vllm_tops/environment/compose.py .venv-vllm/newest

.venv-vllm/installed: pyproject.toml tests/integrations/vllm_tops/environment/pyproject.toml
	@echo "Installing vLLM for CPUs and tops-engine into .venv-vllm ..."
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet \
	  ./tests/integrations/vllm_tops/environment --editable . "pytest>=8.3" "pytest-asyncio>=1.0" "hypothesis>=6.130"
	.venv-vllm/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes torchaudio torchcodec
	@touch $@

# The constraints are not for this one either: lmms-eval pins av below 16, and torchvision has to fit torch.
.venv-eval/installed: pyproject.toml
	@echo "Installing lmms-eval and tops-engine into .venv-eval ..."
	$(PYTHON) -m venv .venv-eval
	.venv-eval/bin/python -m pip --disable-pip-version-check install --quiet \
	  --editable ".[eval]" "pytest>=8.3" "pytest-asyncio>=1.0" "hypothesis>=6.130"
	@touch $@

# What comes with LangChain may be older than constraints.txt says: pip chooses.
$(OLDEST)/installed: pyproject.toml constraints.txt constraints-oldest.txt
	@echo "Installing the oldest supported versions of LangChain into $(OLDEST) ..."
	$(PYTHON) -m venv $(OLDEST)
	grep -Ev '^(lang|transformers|syrupy|pytest|huggingface_hub|tokenizers|hf-xet)' constraints.txt \
	  | cat - constraints-oldest.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet \
	  --constraint $(OLDEST)/constraints.txt --editable ".[dev]"
	@touch $@

clean:  ## Remove the environments and everything that was built.
	rm -rf .venv .venv-vllm .venv-eval .venv-oldest site .mypy_cache .ruff_cache .pytest_cache .hypothesis dist demo.png

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

.venv/dev.installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing tops-engine and the tools for tests into .venv ..."
	$(PIP) --editable ".[dev]"
	@touch .venv/core.installed $@

.venv/docs.installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing the tools for the documentation site into .venv ..."
	$(PIP) --editable ".[docs]"
	@touch $@
