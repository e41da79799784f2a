# make demo · check · test · test-slow · wheel · device-archive · bench · fuzz · arm-check: each makes its own .venv on
# first use (docs/testing.md).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AUDIO ?=

# Tests start hundreds of processes, which read the bytecode of the first; some images have it turned off.
export PYTHONDONTWRITEBYTECODE :=

# Half of the time tests wait for the processes that they start, so there are more workers than the two cores of CI.
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile

.PHONY: demo check test test-slow lint wheel device-archive bench fuzz arm-check clean

$(VENV)/bin/pip:
	@sh tools/make_venv.sh $(PYTHON) $(VENV)

# One environment, with what the demo needs or, in its place, all that developers need; again whenever the dependencies
# change. What 0.1 installed went by the name of `streamsplit`; with both, everything would be there twice.
define install
	@rm -rf streamsplit.egg-info
	@$(BIN)/pip uninstall --quiet --quiet --yes streamsplit
	@$(BIN)/pip install --quiet --disable-pip-version-check -e ".[$(1)]"
endef

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(call install,dev)
	@touch $@ $(VENV)/.demo

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing the demo's packages into $(VENV), once: about 350 MB to download, of which torch is 200 MB and on"
	@echo "x86-64 Linux brings CUDA, 3 GB more, unless PIP_EXTRA_INDEX_URL names PyTorch's index of CPU wheels (README)."
	$(call install,demo)
	@touch $@

# What others install: dist/streamsplit_audio-VERSION-py3-none-any.whl. The same sources give the same bytes.
wheel: | $(VENV)/bin/pip
	rm -rf dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

# What a Raspberry Pi without a network installs from, 85 MB: dist/streamsplit-device-VERSION-aarch64.tar
# (docs/deployment.md). KEY=signing.key signs it.
device-archive: $(VENV)/.installed
	@$(BIN)/python -m tools.device_archive $(if $(KEY),--key "$(KEY)")

demo: $(VENV)/.demo
	@$(BIN)/ssc demo $(if $(AUDIO),--audio "$(AUDIO)") -o demo-report

check: lint
	$(PYTEST) -q -m "not slow and not integration"

test: lint
	$(PYTEST) -m "not slow"

# Everything, what is slow included; what passed at which commit is left in docs/verified.json.
test-slow: lint
	sh tools/slow_packages.sh
	$(PYTEST) -p tools.verified --durations 30

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

bench: $(VENV)/.installed
	$(BIN)/python -m tools.run_benchmarks

# MINUTES for all parsers together (docs/testing.md).
MINUTES ?= 60
fuzz: $(VENV)/.installed
	$(BIN)/python -m tools.fuzz --minutes $(MINUTES)

arm-check: $(VENV)/.installed
	$(BIN)/python -m tools.arm $(if $(AUDIO),--audio "$(AUDIO)")

clean:
	rm -rf $(VENV) .cache dist
