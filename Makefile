# Everything that a contributor or CI runs. `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHONS := 3.13 3.12 3.11
# A Python of that version that runs, or nothing: what pyenv puts into the path may name one that it does not start.
python_of = $(shell for python in python$(1) "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$(1).*[0-9]/bin/python; do \
  "$$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(1)")' 2>/dev/null && command -v "$$python" && break; done)
ifndef PYTHON
PYTHON := $(or $(call python_of,3.13),$(call python_of,3.12),$(call python_of,3.11))
endif
VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
python_for = $(if $(filter $(1),$(VERSION)),$(PYTHON),$(call python_of,$(1)))

VENV := .venv
BIN := $(VENV)/bin
LIGHT := .venv-light/$(VERSION)
TFC := .venv-tfc
AIRFLOW := .venv-airflow
EMULATORS := .venv-emulators
FUZZ := .venv-fuzz
BUILD := .venv-build
PIP_INSTALL := install --quiet --disable-pip-version-check
# uv is several times as fast as pip, which knows the settings of its own that lead to a mirror. $(call install_lock,VENV,LOCK,OPTIONS):
# the environment that commands and most tests run in is compiled ahead, for all of them load TensorFlow. In the others, Python
# compiles what it loads, and keeps that.
install_lock = UV_PYTHON_DOWNLOADS=never $(BUILD)/bin/uv pip install --quiet $(3) --python $(1)/bin/python --no-deps --require-hashes -r $(2) \
  || $(1)/bin/pip $(PIP_INSTALL) --no-deps --require-hashes -r $(2)

export TF_CPP_MIN_LOG_LEVEL ?= 3
unexport PYTHONDONTWRITEBYTECODE

SOURCES := $(shell find package model transforms pipeline -name '*.py' 2>/dev/null)
WHEEL := build/wheel/.ready
IMAGE_PYTHON := 3.11
CLOUD_TESTS := tests/test_object_storage.py tests/test_dataflow_templates.py
IMAGE_TESTS := tests/test_dataflow_image.py

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1|\2/' | column -t -s'|'

.PHONY: pythons
pythons: ## name the versions of Python that are there, the newest first
	@echo $(foreach version,$(PYTHONS),$(if $(call python_for,$(version)),$(version)))

.PHONY: demo
demo: $(VENV)/.ready ## set up, then train, encode, decode and compare on real or made-up data
	$(BIN)/vidpress demo

# A file of tests in each process at a time, in the order in which `tests/conftest.py` puts them.
IN_PROCESSES := --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: test
test: $(VENV)/.torch $(LIGHT)/.ready ## set up, then run every test
	VIDPRESS_LIGHT_PYTHON=$(abspath $(LIGHT)/bin/python) $(BIN)/python -m pytest $(IN_PROCESSES) \
	  --ignore tests/engines --ignore tests/tfc $(PYTEST_ARGS)

# Files and their formats, coding, data sets, and whole jobs in memory. Left out of them is what takes long and depends on the
# processor, not on Python: the whole suite has it.
LIGHT_TESTS := $(foreach name,banks bits coder_arrays epoch_order examples feature_codec features file_kinds frames frozen_model \
  input_decoder input_files kept_columns listed_shards local_files manifest message_places metrics model_file nearest_rounding \
  lookup path_patterns pipeline_decode pipeline_encode range_coder range_coding_tables rate_aware_rounding read_videos resuming rows \
  shard strict_json symbol_counts synthetic tables_out tfrecord transforms uris verification video_dataset videos,tests/test_$(name).py)
NOT_LIGHT := processors_without_wide_registers or plain_coder_sees or blas_kernel
.PHONY: test-light
test-light: ## run the tests that need no TensorFlow on those of Python 3.13, 3.12 and 3.11 that `make test` does not use
	$(foreach version,$(filter-out $(VERSION),$(PYTHONS)),$(if $(call python_for,$(version)),\
	  $(MAKE) test-light-$(version);,echo "Python $(version) is not there: its tests are skipped.";))

test-light-%: .venv-light/%/.ready
	$(<D)/bin/python -m pytest $(IN_PROCESSES) -k "not ($(NOT_LIGHT))" $(LIGHT_TESTS) $(PYTEST_ARGS)

.PHONY: test-tfc
test-tfc: $(VENV)/.torch $(TFC)/.ready ## compare with tensorflow-compression (wants Python 3.11)
	VIDPRESS_PYTHON=$(abspath $(BIN)/python) \
	  $(TFC)/bin/python -m pytest --confcutdir tests/tfc tests/tfc $(PYTEST_ARGS)

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

.PHONY: test-image
test-image: $(VENV)/.ready $(EMULATORS)/.ready $(WHEEL) ## carry out the steps of the Dockerfile in build/image, and run jobs there against emulators
	VIDPRESS_EMULATORS=$(abspath $(EMULATORS)) VIDPRESS_IMAGE_PYTHON=$(call python_for,$(IMAGE_PYTHON)) \
	  $(BIN)/python -m pytest $(IMAGE_TESTS) $(PYTEST_ARGS)

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

CHECK_PYTHON = [ -n "$(filter $(PYTHONS),$(VERSION))" ] || { \
  echo "vidpress needs Python 3.11, 3.12 or 3.13: install one, or name it with 'make PYTHON=/path/to/python3.13'." >&2; exit 1; }

$(VENV)/.ready: requirements.lock pyproject.toml setup.py | $(BUILD)/.ready
	@$(CHECK_PYTHON)
	@echo "Setting up $(VENV) from requirements.lock (TensorFlow included: a few minutes) ..."
	"$(PYTHON)" -m venv --clear $(VENV)
	$(call install_lock,$(VENV),requirements.lock,--compile-bytecode)
	$(BIN)/pip $(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# PyTorch is large. Only the tests need it, and what else reads data sets.
$(VENV)/.torch: $(VENV)/.ready requirements-torch.lock
	@echo "Adding PyTorch to $(VENV) from requirements-torch.lock ..."
	$(call install_lock,$(VENV),requirements-torch.lock)
	@touch $@

# What an encode or decode worker has, and pytest: no TensorFlow, and vidpress as a regular wheel. One for each Python.
.venv-light/%/.installed: requirements-light.lock | $(BUILD)/.ready
	@$(CHECK_PYTHON)
	@echo "Setting up $(@D) from requirements-light.lock ..."
	"$(call python_for,$*)" -m venv --clear $(@D)
	$(call install_lock,$(@D),requirements-light.lock)
	@touch $@
.venv-light/%/.ready: .venv-light/%/.installed $(WHEEL)
	$(@D)/bin/pip $(PIP_INSTALL) --no-deps --force-reinstall build/wheel/vidpress-*.whl
	@touch $@
.PRECIOUS: .venv-light/%/.installed .venv-light/%/.ready

# tensorflow-compression, the reference. It is in maintenance mode, and has no release for a Python after 3.11.
$(TFC)/.ready: requirements-tfc.lock pyproject.toml setup.py | $(BUILD)/.ready
	@[ -n "$(call python_for,3.11)" ] || { echo "tensorflow-compression needs Python 3.11, which is not there." >&2; exit 1; }
	@echo "Setting up $(TFC) from requirements-tfc.lock (TensorFlow 2.14 included: a few minutes) ..."
	"$(call python_for,3.11)" -m venv --clear $(TFC)
	$(call install_lock,$(TFC),requirements-tfc.lock)
	$(TFC)/bin/pip $(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

# Airflow starts vidpress in another Python, as its users do: its own hundreds of packages stay out of the jobs.
$(AIRFLOW)/.ready: requirements-airflow.lock | $(BUILD)/.ready
	@$(CHECK_PYTHON)
	@echo "Setting up $(AIRFLOW) from requirements-airflow.lock ..."
	"$(PYTHON)" -m venv --clear $(AIRFLOW)
	$(call install_lock,$(AIRFLOW),requirements-airflow.lock)
	@touch $@

# Setuptools, which alone builds the wheel, and uv, which sets the other venvs up.
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
$(EMULATORS)/.ready: requirements-emulators.lock | $(BUILD)/.ready
	@$(CHECK_PYTHON)
	@echo "Setting up $(EMULATORS) from requirements-emulators.lock ..."
	"$(PYTHON)" -m venv --clear $(EMULATORS)
	$(call install_lock,$(EMULATORS),requirements-emulators.lock)
	@touch $@

# Atheris, and what a worker has: it watches vidpress as a regular wheel.
$(FUZZ)/.installed: requirements-fuzz.lock | $(BUILD)/.ready
	@$(CHECK_PYTHON)
	@echo "Setting up $(FUZZ) from requirements-fuzz.lock ..."
	"$(PYTHON)" -m venv --clear $(FUZZ)
	$(call install_lock,$(FUZZ),requirements-fuzz.lock)
	@touch $@
$(FUZZ)/.ready: $(FUZZ)/.installed $(WHEEL)
	$(FUZZ)/bin/pip $(PIP_INSTALL) --no-deps --force-reinstall build/wheel/vidpress-*.whl
	@touch $@

# All locks but one are parts of one resolution, which holds for every Python: so each package has the same version in each.
# What is locked stays where it can; `make lock UPGRADE=--upgrade` takes the newest of everything.
UPGRADE :=
LOCK := UV_PYTHON_DOWNLOADS=never $(BUILD)/bin/uv pip compile --generate-hashes --no-emit-index-url --no-emit-find-links --quiet \
  --custom-compile-command 'make lock'
EVERY_PYTHON := --universal --python-version 3.11 --fork-strategy fewest
# $(call write_lock,NAME,WHAT): NAME.lock of WHAT, in the versions of build/lock/all.lock.
write_lock = cp build/lock/all.lock build/lock/$(1).lock && $(LOCK) -o build/lock/$(1).lock $(2) \
  && sed -E "$(SHORTEN)" build/lock/$(1).lock > $(1).lock
# Of what PyTorch asks for, the part that it needs neither to be imported nor to compute on a processor.
UNUSED_BY_TORCH := $(addprefix --no-emit-package ,triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cuda-cccl nvidia-cusolver nvidia-nvtx)
# The environments of pyproject.toml, which uv states of each package anew.
SHORTEN := s/ and (platform_machine == 'x86_64'|sys_platform == 'linux')//g; s/ ; python_full_version < '3.14' \\\\$$/ \\\\/; s/python_full_version < '3.14' and //
.PHONY: lock
lock: $(BUILD)/.ready ## resolve the dependencies and write all locks
	rm -rf build/lock && mkdir -p build/lock
	cat $(filter-out requirements-tfc.lock,$(wildcard requirements*.lock)) > build/lock/all.lock
	$(LOCK) $(EVERY_PYTHON) $(UPGRADE) pyproject.toml --all-extras $(addprefix --group ,light-tests readers airflow build emulators fuzz) \
	  -o build/lock/all.lock
	grep -o '^torch==[^ ]*' build/lock/all.lock > build/lock/torch.in
	$(call write_lock,requirements,$(EVERY_PYTHON) pyproject.toml $(addprefix --extra ,gcp train jax report dev))
	$(call write_lock,requirements-torch,$(EVERY_PYTHON) build/lock/torch.in --group readers $(UNUSED_BY_TORCH))
	$(call write_lock,requirements-light,$(EVERY_PYTHON) pyproject.toml --extra beam --group light-tests)
	$(call write_lock,requirements-dataflow,$(EVERY_PYTHON) pyproject.toml --extra gcp)
	$(call write_lock,requirements-fuzz,$(EVERY_PYTHON) pyproject.toml --extra beam --group fuzz)
	$(call write_lock,requirements-airflow,$(EVERY_PYTHON) --group airflow)
	$(call write_lock,requirements-build,$(EVERY_PYTHON) --group build)
	$(call write_lock,requirements-emulators,$(EVERY_PYTHON) --group emulators)
	$(call write_lock,requirements-tfc,--python-version 3.11 --python-platform x86_64-manylinux_2_28 pyproject.toml --extra beam --group tfc)

# What the coder is compared with, beside tensorflow-compression's environment: no dependencies of theirs are needed.
RIVALS := build/bench/rivals
$(RIVALS)/.ready: benchmarks/requirements.lock $(TFC)/.ready
	rm -rf $(RIVALS)
	$(TFC)/bin/pip $(PIP_INSTALL) --no-deps --require-hashes --only-binary :all: --target $(RIVALS) -r benchmarks/requirements.lock \
	  || { mkdir -p $(RIVALS); echo "constriction and CompressAI do not install here: they are left out." >&2; }
	@touch $@

.PHONY: bench
bench: $(VENV)/.ready $(LIGHT)/.ready $(TFC)/.ready $(RIVALS)/.ready ## run every benchmark and write docs/benchmarks.md (an hour; wants an idle machine)
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE PYTHONPATH=$(abspath $(RIVALS)) \
	  $(BIN)/python benchmarks/report.py --light_python $(abspath $(LIGHT)/bin/python) \
	  --tfc_python $(abspath $(TFC)/bin/python) $(BENCH_ARGS)

.PHONY: clean
clean: ## remove everything that make made
	rm -rf $(VENV) .venv-light $(TFC) $(AIRFLOW) $(EMULATORS) $(FUZZ) $(BUILD) build *.egg-info demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
