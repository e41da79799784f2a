# make demo · make test · make lint · make wheel · make bench · make arm-check: each makes its own .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AUDIO ?=

.PHONY: demo test lint wheel bench arm-check clean

$(VENV)/bin/pip:
	sh tools/make_venv.sh $(PYTHON) $(VENV)

# One environment for developers and for the demo; again whenever the dependencies change.
# What 0.1 installed went by the name of `streamsplit`; with both, everything would be there twice.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	rm -rf streamsplit.egg-info
	$(BIN)/pip uninstall --quiet --quiet --yes streamsplit
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

# What others install: dist/streamsplit_audio-VERSION-py3-none-any.whl. The same sources give the same bytes.
wheel: | $(VENV)/bin/pip
	rm -rf dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

demo: $(VENV)/.installed
	sh tools/demo_audio.sh "$(AUDIO)" .cache/demo-audio
	audio=$$(cat .cache/demo-audio.path); $(BIN)/ssc demo $${audio:+--audio "$$audio"} -o demo-report

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python -m tools.bench

arm-check: $(VENV)/.installed
	$(BIN)/python -m tools.arm $(if $(AUDIO),--audio "$(AUDIO)")

clean:
	rm -rf $(VENV) .cache dist
