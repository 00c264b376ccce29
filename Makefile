# Needs only make and Python 3.11 or newer. `make` alone lists the targets.
VENV     ?= .venv
PORT     ?= 8000
# Added to `dalorra serve`, to `pip install` and to `pytest`.
ARGS     ?=
PIP_ARGS ?=
PYTEST_ARGS ?=

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
RAY   := $(VENV)/.installed-ray
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first of these that is new enough; python3 when none is, so that the message names it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(NEW_ENOUGH)' 2>/dev/null && echo "$$p" && exit; done; echo python3)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup fetch serve test test-all system-deps lint format generate bench dist clean

help: ## List the targets
	@echo "make serve      start the server on http://localhost:8000 with the bundled adapter"
	@echo "                (PORT=9000, ARGS='--adapter DIR --base-model ID' change that)"
	@echo "make test       check everything: ruff, mypy, import-linter, pytest"
	@echo "make test-all   the same, then the slow tests (brings Prometheus, Chromium, Ray and others' clients)"
	@echo "make lint       the checks without the tests"
	@echo "make generate   write the Grafana dashboards and the Prometheus operator's rules"
	@echo "make format     put the code in the form that lint asks for"
	@echo "make bench      run the benchmarks (BENCH_ARGS=...)"
	@echo "make dist       build wheel and sdist, check them, ask a server of the wheel"
	@echo "make setup      only make $(VENV), install, and fetch the base model"
	@echo "make clean      remove $(VENV) and every build output"
	@echo
	@echo "PYTHON=python3.12 picks the interpreter; without a GPU,"
	@echo "PIP_ARGS can name PyTorch's own index of CPU builds: a smaller install."

$(STAMP): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "error: $(PYTHON) was not found; install Python 3.11 or newer, or name one with PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "error: $$("$(PYTHON)" --version 2>&1) is too old; install Python 3.11 or newer, or name one with PYTHON=/path/to/python" >&2; exit 1; }
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear "$(VENV)"
	@echo "Installing into $(VENV) (minutes the first time) ..." >&2
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	@touch "$@"

# Large, and needed by its slow tests alone.
$(RAY): $(STAMP)
	@echo "Installing Ray into $(VENV) ..." >&2
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -e '.[dev,ray]'
	@touch "$@"

fetch: $(STAMP)
	@"$(BIN)/dalorra" fetch >/dev/null

setup: $(STAMP) fetch ## Make the virtual environment and fetch the base model

serve: setup ## Start the server
	"$(BIN)/dalorra" serve --port $(PORT) $(ARGS)

lint: $(STAMP) ## All checks except the tests
	"$(BIN)/ruff" check
	"$(BIN)/ruff" format --check
	"$(BIN)/mypy" --strict
	"$(BIN)/lint-imports"

format: $(STAMP)
	"$(BIN)/ruff" check --fix
	"$(BIN)/ruff" format

test: setup lint ## All checks
	"$(BIN)/python" -m pytest $(PYTEST_ARGS)

test-all: test $(RAY) system-deps ## All checks, slow tests included
	"$(BIN)/python" -m pytest -m slow $(PYTEST_ARGS)

system-deps: $(STAMP) ## Ray, Prometheus, promtool, Chromium and others' clients, for the slow tests
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -e '.[ray,protocols,shared]'
	@tests/install_programs.sh "$(abspath $(BIN))"

generate: $(STAMP) ## The files under deploy/ that are written by others there
	"$(BIN)/python" -m deploy.grafana.dashboards
	"$(BIN)/python" -m deploy.prometheus.as_resource

bench: setup ## The benchmarks
	"$(BIN)/python" -m benchmarks $(BENCH_ARGS)

dist: setup ## Wheel and sdist, checked
	rm -rf dist
	"$(BIN)/python" -m deploy.release dist

clean: ## Remove what the other targets made (the base model stays in its cache)
	rm -rf "$(VENV)" dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
