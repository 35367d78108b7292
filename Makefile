# make demo   watch a small network learn real digits: runs/digits/version_0/report.html
# make test   lint, import rules, types, tests
# make slow   the long validations          make bench   side-by-side timings
# make gpu    device tests and benchmarks on a CUDA machine, one table of figures
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPES := .types
THREADS ?= 1

.PHONY: demo test lint types slow bench gpu setup clean
.DEFAULT_GOAL := test

setup: $(VENV)/.ready

# uv takes a torchvision that matches torch; plain pip may not.
$(VENV)/.ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --compile-bytecode --editable '.[test]'
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/observatory fit --config experiments/digits.yaml

test: lint types
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# mypy and import-linter cannot follow the editable install's mapping: lay the package out as a wheel has it.
types: $(VENV)/.ready
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/observatory
	@ln -s $(CURDIR)/observatory/* $(TYPES)/observatory/
	@ln -s $(CURDIR)/callbacks $(CURDIR)/experiments $(TYPES)/observatory/
	cd $(TYPES) && PYTHONPATH=. ../$(BIN)/lint-imports ../.importlinter --no-cache
	cd $(TYPES) && ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache observatory

slow: $(VENV)/.ready
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow

bench: $(VENV)/.ready
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# On a CUDA machine whose own Python has torch and lightning; nothing is installed there.
GPU_PYTHON ?= python3
gpu:
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/observatory
	@ln -s $(CURDIR)/observatory/* $(TYPES)/observatory/
	@ln -s $(CURDIR)/callbacks $(CURDIR)/experiments $(TYPES)/observatory/
	PYTHONPATH=$(TYPES) timeout 480 $(GPU_PYTHON) -m pytest -p no:cacheprovider -k cuda -m "slow or not slow"
	PYTHONPATH=$(TYPES):benchmarks timeout 480 $(GPU_PYTHON) benchmarks/ntk.py --device cuda

clean:
	rm -rf $(VENV) $(TYPES) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
