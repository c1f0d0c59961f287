# `make demo` and `make test` are all a newcomer needs; both install what is missing first.

PYTHON ?= python3
# What pip is asked for as torch. A plain release from the default index brings CUDA on most Linux
# machines (gigabytes); name another build or index here, e.g.
#   make install TORCH="torch --index-url URL-OF-A-CPU-INDEX"
# or leave it empty to do without torch: functions of runtime python-torch are then refused.
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint types imports unit integration lowest bench-coldstart bench-overhead bench-burst clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "faasd needs Python 3.11 or newer; this is `$(PYTHON) --version`. Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(strip $(TORCH)),$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev$(if $(strip $(TORCH)),$(comma)torch)]'
	@touch $@

comma := ,

demo: install
	$(BIN)/python -m bench.demo

test: lint types imports unit integration

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

unit: install
	$(BIN)/pytest tests/unit

integration: install
	$(BIN)/pytest tests/integration

# The tests that need no extra, on the oldest versions that pyproject.toml admits.
lowest: $(VENV)-lowest/.installed
	$(VENV)-lowest/bin/pytest --quiet tests/unit/controller tests/unit/faasd tests/unit/functions \
	  tests/unit/loadgen tests/unit/worker tests/integration/test_client.py \
	  tests/integration/test_loadgen_replay.py tests/integration/test_pools_live.py

$(VENV)-lowest/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints-lowest.txt -e . pytest pytest-timeout hypothesis openapi-spec-validator
	@touch $@

bench-coldstart bench-overhead bench-burst: install
	$(BIN)/python -m bench.$(subst bench-,,$@)

clean:
	rm -rf $(VENV) $(VENV)-lowest .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
