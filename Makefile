# `make demo` and `make test` are all a newcomer needs; both install what is missing first.

PYTHON ?= python3
# What pip is asked for as torch. A plain release from the default index brings CUDA on most Linux
# machines (gigabytes); name another build or index here, e.g.
#   make install TORCH="torch --index-url URL-OF-A-CPU-INDEX"
# or leave it empty to do without torch: functions of runtime python-torch are then refused.
TORCH ?= torch==2.13.0

# The image that the images of functions/images/ are built on; empty takes an official slim Python.
# Where nothing can be pulled, tests/docker/base-image.sh makes one.
BASE_IMAGE ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint types imports unit integration docker images image-context \
  image-python image-python-torch image-daemon lowest bench-coldstart bench-overhead bench-burst bench-containers \
  bench-wire bench-peers bench-scaling bench-controllers bench-scheduling bench-preloading clean

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

test: lint types imports unit integration docker

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

# Against a real engine; where none answers they are skipped, which says why.
docker: install
	@if docker version >/dev/null 2>&1; then $(MAKE) --no-print-directory images; fi
	$(BIN)/pytest tests/docker

# Quick when nothing changed: the engine's cache is asked.
images: image-python image-daemon $(if $(strip $(TORCH)),image-python-torch)

image-python: image-context
	docker build $(BUILD_ARGS) -t faasd-runtime-python -f functions/images/python/Dockerfile .

image-daemon: image-context
	docker build $(BUILD_ARGS) -t faasd-daemon -f functions/images/daemon/Dockerfile .

# After the others, which need not be sent a wheel of torch.
image-python-torch: image-python image-daemon
	@for folder in $${PIP_FIND_LINKS:-}; do \
	  for wheel in "$$folder"/torch-*.whl; do \
	    if [ -f "$$wheel" ]; then ln "$$wheel" .images/wheels/ 2>/dev/null || cp "$$wheel" .images/wheels/; fi; \
	  done; \
	done
	docker build $(BUILD_ARGS) --build-arg TORCH='$(TORCH)' -t faasd-runtime-python-torch \
	  -f functions/images/python-torch/Dockerfile .

# Without a value each takes the environment's, if there is one.
BUILD_ARGS = $(if $(strip $(BASE_IMAGE)),--build-arg BASE_IMAGE=$(strip $(BASE_IMAGE))) \
  --build-arg PIP_INDEX_URL --build-arg PIP_EXTRA_INDEX_URL

# What builds may use of this machine: the certificates that it trusts, and its wheel of torch. The
# folder hides itself from git, and nothing of it stays in an image.
image-context:
	@rm -rf .images && mkdir -p .images/wheels && echo '*' > .images/.gitignore
	@for bundle in "$${PIP_CERT:-}" "$${SSL_CERT_FILE:-}"; do \
	  if [ -f "$$bundle" ]; then cp "$$bundle" .images/ca-certificates.crt; break; fi; \
	done

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

# More options by ARGS, e.g. make bench-peers ARGS="--peers faasd,mosec --rounds 5"
bench-coldstart bench-overhead bench-burst bench-containers bench-wire bench-scaling bench-controllers bench-scheduling bench-preloading: install
	$(BIN)/python -m bench.$(subst bench-,,$@) $(ARGS)

bench-peers: install
	$(BIN)/python -m bench.peers --torch '$(TORCH)' $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-lowest .demo .images .bench-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis
