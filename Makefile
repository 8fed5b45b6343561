# Everything that a contributor or CI runs. `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# tensorflow-compression, which training needs, has no release for a Python after 3.11.
PYTHON ?= $(firstword $(shell command -v python3.11 python3 python))
VENV := .venv
BIN := $(VENV)/bin
LIGHT := .venv-light
AIRFLOW := .venv-airflow
EMULATORS := .venv-emulators
FUZZ := .venv-fuzz
BUILD := .venv-build
PIP_INSTALL := install --quiet --disable-pip-version-check

export TF_CPP_MIN_LOG_LEVEL ?= 3

SOURCES := $(shell find package model transforms pipeline -name '*.py' 2>/dev/null)
WHEEL := build/wheel/.ready
CLOUD_TESTS := tests/test_object_storage.py tests/test_dataflow_templates.py tests/test_dataflow_image.py

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1|\2/' | column -t -s'|'

.PHONY: demo
demo: $(VENV)/.ready ## set up, then train, encode, decode and compare on real or made-up data
	$(BIN)/vidpress demo

.PHONY: test
test: $(VENV)/.ready $(LIGHT)/.ready ## set up, then run every test
	VIDPRESS_LIGHT_PYTHON=$(abspath $(LIGHT)/bin/python) $(BIN)/python -m pytest --numprocesses auto --dist loadfile \
	  --ignore tests/engines $(PYTEST_ARGS)

ENGINES := build/engines
.PHONY: test-engines
test-engines: $(VENV)/.ready ## fetch Flink and Prism, then run the jobs on each and kill them (wants Java 17, Maven, Go)
	$(BIN)/python tests/engines/fetch.py $(ENGINES)
	VIDPRESS_ENGINES=$(abspath $(ENGINES)) $(BIN)/python -m pytest tests/engines $(PYTEST_ARGS)

.PHONY: test-airflow
test-airflow: $(VENV)/.ready $(AIRFLOW)/.ready ## set up Airflow, then run the tests of the DAGs
	VIDPRESS_PYTHON=$(abspath $(BIN)/python) \
	  $(AIRFLOW)/bin/python -m pytest --confcutdir tests/dags tests/dags $(PYTEST_ARGS)

.PHONY: test-cloud
test-cloud: $(VENV)/.ready $(EMULATORS)/.ready $(WHEEL) ## run the tests of Cloud Storage and Dataflow against emulators
	VIDPRESS_EMULATORS=$(abspath $(EMULATORS)) $(BIN)/python -m pytest $(CLOUD_TESTS) $(PYTEST_ARGS)

FUZZ_SECONDS ?= 120
.PHONY: fuzz
fuzz: $(FUZZ)/.ready ## feed the parsers hostile files, each for FUZZ_SECONDS (120); findings are in build/fuzz
	$(FUZZ)/bin/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)

.PHONY: wheel
wheel: $(WHEEL) ## build vidpress's wheel in build/wheel

.PHONY: lint
lint: $(VENV)/.ready ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p vidpress

.PHONY: format
format: $(VENV)/.ready ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: install
install: $(VENV)/.ready ## set up the development environment in .venv

CHECK_PYTHON = "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
  echo "vidpress needs Python 3.11 here (tensorflow-compression has no release for a later one): install it, or name it with 'make PYTHON=/path/to/python3.11'." >&2; exit 1; }

$(VENV)/.ready: requirements.lock pyproject.toml setup.py
	@$(CHECK_PYTHON)
	@echo "Setting up $(VENV) from requirements.lock (TensorFlow included: a few minutes) ..."
	"$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/pip $(PIP_INSTALL) --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip $(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# What an encode or decode worker has: no TensorFlow, the newest Beam, and vidpress as a regular wheel.
$(LIGHT)/.installed: requirements-light.lock
	@$(CHECK_PYTHON)
	@echo "Setting up $(LIGHT) from requirements-light.lock ..."
	"$(PYTHON)" -m venv --clear $(LIGHT)
	$(LIGHT)/bin/pip $(PIP_INSTALL) --no-deps --require-hashes -r requirements-light.lock
	@touch $@
$(LIGHT)/.ready: $(LIGHT)/.installed $(WHEEL)
	$(LIGHT)/bin/pip $(PIP_INSTALL) --no-deps --force-reinstall build/wheel/vidpress-*.whl
	@touch $@

# Airflow's own dependencies do not go with TensorFlow's, nor with Beam's of 2.72: it starts vidpress in another Python.
$(AIRFLOW)/.ready: requirements-airflow.lock
	@$(CHECK_PYTHON)
	@echo "Setting up $(AIRFLOW) from requirements-airflow.lock ..."
	"$(PYTHON)" -m venv --clear $(AIRFLOW)
	$(AIRFLOW)/bin/pip $(PIP_INSTALL) --no-deps --require-hashes -r requirements-airflow.lock
	@touch $@

# A wheel needs setuptools and nothing else: no TensorFlow has to be installed to build one.
$(BUILD)/.ready: requirements-build.lock
	@$(CHECK_PYTHON)
	"$(PYTHON)" -m venv --clear $(BUILD)
	$(BUILD)/bin/pip $(PIP_INSTALL) --no-deps --require-hashes -r requirements-build.lock
	@touch $@

$(WHEEL): $(BUILD)/.ready pyproject.toml setup.py README.md $(SOURCES)
	rm -rf build/wheel build/lib build/bdist.*
	$(BUILD)/bin/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir build/wheel .
	@touch $@

# What stands in for Cloud Storage, and linters. Nothing of it is imported: an environment of its own keeps it apart.
$(EMULATORS)/.ready: requirements-emulators.lock
	@$(CHECK_PYTHON)
	@echo "Setting up $(EMULATORS) from requirements-emulators.lock ..."
	"$(PYTHON)" -m venv --clear $(EMULATORS)
	$(EMULATORS)/bin/pip $(PIP_INSTALL) --no-deps --require-hashes -r requirements-emulators.lock
	@touch $@

# Atheris, and what a worker has: it watches vidpress as a regular wheel.
$(FUZZ)/.installed: requirements-fuzz.lock
	@echo "Setting up $(FUZZ) from requirements-fuzz.lock ..."
	"$(PYTHON)" -m venv --clear $(FUZZ)
	$(FUZZ)/bin/pip $(PIP_INSTALL) --no-deps --require-hashes -r requirements-fuzz.lock
	@touch $@
$(FUZZ)/.ready: $(FUZZ)/.installed $(WHEEL)
	$(FUZZ)/bin/pip $(PIP_INSTALL) --no-deps --force-reinstall build/wheel/vidpress-*.whl
	@touch $@

# apache-beam[gcp] after 2.72 needs a protobuf that TensorFlow 2.14 refuses. The light lock takes the newest Beam.
LOCK := uv pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --generate-hashes --no-emit-index-url --no-emit-find-links --quiet --custom-compile-command 'make lock'
.PHONY: lock
lock: ## resolve the dependencies anew and write all locks (needs uv)
	$(LOCK) pyproject.toml --all-extras --upgrade-package apache-beam --constraint <(echo 'apache-beam==2.72.0') -o requirements.lock
	$(LOCK) pyproject.toml -o requirements-light.lock
	$(LOCK) --group airflow -o requirements-airflow.lock
	$(LOCK) pyproject.toml --extra gcp -o requirements-dataflow.lock
	$(LOCK) --group build -o requirements-build.lock
	$(LOCK) --group emulators -o requirements-emulators.lock
	$(LOCK) pyproject.toml --group fuzz -o requirements-fuzz.lock

# What the coder is compared with, beside the locked environment: no dependencies of theirs are needed.
RIVALS := build/bench/rivals
$(RIVALS)/.ready: benchmarks/requirements.lock $(VENV)/.ready
	rm -rf $(RIVALS)
	$(BIN)/pip $(PIP_INSTALL) --no-deps --require-hashes --only-binary :all: --target $(RIVALS) -r benchmarks/requirements.lock \
	  || { mkdir -p $(RIVALS); echo "constriction and CompressAI do not install here: they are left out." >&2; }
	@touch $@

.PHONY: bench
bench: $(VENV)/.ready $(LIGHT)/.ready $(RIVALS)/.ready ## run every benchmark and write docs/benchmarks.md (an hour; wants an idle machine)
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE PYTHONPATH=$(abspath $(RIVALS)) \
	  $(BIN)/python benchmarks/report.py --light_python $(abspath $(LIGHT)/bin/python) $(BENCH_ARGS)

.PHONY: clean
clean: ## remove everything that make made
	rm -rf $(VENV) $(LIGHT) $(AIRFLOW) $(EMULATORS) $(FUZZ) $(BUILD) build *.egg-info demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
