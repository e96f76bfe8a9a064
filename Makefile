# make demo   a virtual environment, the whole install, and the main job on drawn scenes
# make test   the tests (installs first where needed)
# make docs   the documentation as a site, in seconds: it needs none of the install
# STACK=onedl uses the maintained fork of OpenMMLab instead of the original packages.
STACK ?= openmmlab
VENV ?= .venv-$(STACK)
PYTHON ?= python3
BIN := $(VENV)/bin
SETUPTOOLS_openmmlab := setuptools<80
SETUPTOOLS_onedl := setuptools>=80
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint install docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/python demo/run.py

test: $(VENV)/test-tools
	$(BIN)/python -m pytest

lint: $(VENV)/test-tools
	$(BIN)/ruff check .

install: $(VENV)/installed

$(VENV)/bin/python:
	@echo "[1/4] Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# Each step leaves a stamp, so that a broken install goes on where it stopped and a finished one is not repeated.
$(VENV)/torch: requirements/build.txt | $(VENV)/bin/python
	@echo "[2/4] Installing torch and the build tools (1 to 5 minutes)"
	@$(PIP) "$(SETUPTOOLS_$(STACK))" -r requirements/build.txt
	@touch $@

$(VENV)/openmmlab: requirements/$(STACK).txt $(VENV)/torch
	@echo "[3/4] Installing OpenMMLab ($(STACK)). mmcv compiles its operators: 8 to 15 minutes on 2 cores the first"
	@echo "      time, seconds afterwards, since pip keeps the wheel. Started at $$(date +%H:%M); please wait."
	@MMCV_WITH_OPS=1 $(PIP) --no-build-isolation -r requirements/$(STACK).txt
	@$(BIN)/python -c "import mmcv.ops" || { echo "mmcv was built without its operators: run 'make clean' and 'pip cache remove \"*mmcv*\"', then again."; exit 1; }
	@touch $@

$(VENV)/installed: setup.py requirements/runtime.txt $(VENV)/openmmlab
	@echo "[4/4] Installing mmtr"
	@$(PIP) --no-build-isolation -r requirements/runtime.txt -e .
	@touch $@

$(VENV)/test-tools: requirements/tests.txt requirements/tune.txt requirements/binary.txt $(VENV)/installed
	@$(PIP) -r requirements/tests.txt
	@$(PIP) --no-deps -r requirements/binary.txt
	@touch $@

# The site, in site/: an environment of its own, since sources are read and not imported. Warnings are errors.
docs: .venv-docs/installed
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "Open site/index.html; with search, by .venv-docs/bin/mkdocs serve"

.venv-docs/installed: requirements/docs.txt
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@touch $@

clean:
	rm -rf $(VENV) .venv-docs site
