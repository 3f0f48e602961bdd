# make forecast | test | lint | nature | docs; the first run of each installs what it needs.
# PYTHON=... chooses the interpreter that the environments are made with (3.11 or newer).

PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11 python; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$candidate; break; }; done)
NATURE_PYTHON ?= $(PYTHON)
VENV := .venv
NATURE_VENV := .venv-nature
BIN := $(VENV)/bin
FORECAST := outputs/forecast-2026062400
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet

.PHONY: forecast test lint format nature docs clean
.DELETE_ON_ERROR:

forecast: $(VENV)/.installed
	@mkdir -p outputs
	$(BIN)/jigsaw-forecast run --init 2026-06-24T00 --write-initial-state --overwrite \
		--output $(FORECAST).zarr --plot $(FORECAST).png
	@echo
	@echo "Ten-day forecast of a simulated planet: $(FORECAST).zarr"
	@echo "Its maps: $(FORECAST).png"

test: $(VENV)/.installed-test
	@failed=0; export OMP_NUM_THREADS=1; \
	$(BIN)/python -m pytest -m alone || failed=1; \
	$(BIN)/python -m pytest -m "not alone" --numprocesses 2 --dist loadfile || failed=1; \
	exit $$failed

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

nature: $(NATURE_VENV)/.installed

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict --site-dir outputs/site

# An environment is installed again when what it holds may have changed: the stamps are younger
# than pyproject.toml and constraints.txt.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: missing Python 3.11 or newer; give PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing in $(VENV) (once; torch is large)"
	@$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@echo "Installing the extra '$*' in $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt --editable '.[$*]'
	@touch $@

# jcm pins other versions than the project, so it has an environment of its own.
$(NATURE_VENV)/bin/python:
	@test -n "$(NATURE_PYTHON)" || { echo "error: missing Python 3.11 or newer; give PYTHON=..." >&2; exit 2; }
	$(NATURE_PYTHON) -m venv $(NATURE_VENV)

$(NATURE_VENV)/.installed: constraints-nature.txt | $(NATURE_VENV)/bin/python
	@echo "Installing jcm in $(NATURE_VENV) (once; 1.6 GB)"
	@$(NATURE_VENV)/bin/python $(PIP_INSTALL) --constraint constraints-nature.txt jcm==3.0.0 zarr
	@touch $@

clean:
	rm -rf $(VENV) $(NATURE_VENV) outputs build *.egg-info
