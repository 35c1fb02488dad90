# Everything a stranger needs: `make demo` and `make test` set up a virtual environment of their own.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

LOWEST ?= .venv-lowest
PARTS := $(addprefix tests/, $(addsuffix .py, trace/test_trace end_to_end/test_patterns end_to_end/test_search \
	selection/test_budget criteria/test_criteria methods/test_hesso surgery/test_shrink io/test_io io/test_export \
	program/test_graph_cut huggingface/test_huggingface methods/test_lhspg_peft cli/test_cli))

# mypy as somebody else's project runs it: strict, without our settings (torch does not type `backward`).
STRANGER := --config-file= --strict --allow-untyped-calls --ignore-missing-imports

BASE ?= HEAD

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-lowest test-wheel lint docs pictures format replay benchmark clean

# One thread: the network is so small that two would mostly wait for each other.
demo: $(VENV)/.demo
	OMP_NUM_THREADS=1 $(BIN)/niwaki train --out out/demo --overwrite --baseline
	@echo 'Next:       source $(BIN)/activate && niwaki inspect my_model.py:factory'

test: $(VENV)/.test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -q

# The lowest versions that pyproject.toml promises, by hand: one file of tests for each part. Several GB of downloads.
test-lowest: $(LOWEST)/.ready
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python examples/own_loop.py
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -n $(JOBS) $(PARTS)

# The wheel as a user gets it, by hand: built, installed in a fresh environment and used from elsewhere.
test-wheel:
	rm -rf build/wheel && mkdir -p build/wheel && $(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check build mypy==2.4.1
	build/wheel/venv/bin/python -m build --outdir build/wheel/dist . > build/wheel/build.log
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		torch==2.13.0 scikit-learn build/wheel/dist/*.whl
	cp examples/own_loop.py build/wheel && cd build/wheel && OMP_NUM_THREADS=1 venv/bin/python own_loop.py
	cd build/wheel && venv/bin/niwaki inspect mlp && venv/bin/mypy $(STRANGER) own_loop.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site, in out/site. `mkdocs serve` shows it while you write.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The pictures of the terminal, of a run's page and of the map, in docs/; they need the browser chromium.
pictures: $(VENV)/.test
	OMP_NUM_THREADS=1 PYTHONPATH=tests/helpers $(BIN)/python -m pictures

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Do methods train the same as at another commit? `make replay BASE=<commit>`
replay: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.replay $(BASE)

benchmark: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.accuracy run --tasks digits
	$(BIN)/python -m benchmarks.accuracy show --tasks digits

clean:
	rm -rf $(VENV) $(LOWEST) out build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "niwaki needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) -e '.[train]'
	touch $@

# These ask for a torch of their own choice, so they come without their dependencies.
$(VENV)/.test: $(VENV)/.demo
	$(PIP) -e '.[dev]' transformers accelerate
	$(PIP) --no-deps torchvision==0.28.0 timm bitsandbytes lightning torchmetrics lightning-utilities
	touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(PIP) -e '.[docs]'
	touch $@

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt \
		-e '.[train,onnx,lora]' pytest pytest-xdist hypothesis einops accelerate
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.25.0 timm==1.0.3
	touch $@
