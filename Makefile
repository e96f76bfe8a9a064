# make demo       a virtual environment, the install without a compiler, and the main job on drawn scenes
# make test       the tests of every day (compiles mmcv's operators where they are absent)
# make test-all   those, and then the slow ones
# make install    the whole install, with mmcv's operators
# make docs       the documentation as a site, in seconds: it needs none of the install
# STACK=onedl uses the maintained fork of OpenMMLab instead of the original packages.
STACK ?= openmmlab
VENV ?= .venv-$(STACK)
PYTHON ?= python3
BIN := $(VENV)/bin
SETUPTOOLS_openmmlab := setuptools<80
SETUPTOOLS_onedl := setuptools>=80
# -qq: errors only; the warnings of pip are of no use to who installs this.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# The packages of the stack stand in every later call, so that nothing moves their pins.
PINS := -r requirements/$(STACK)-pins.txt
# Each worker computes with one thread; more would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal

# $(call step,What is done) command && time_taken: says it, does it, says how long it took.
step = @printf '%s\n' "$(1)" && start=$$(date +%s) && time_taken() { echo "    took $$(($$(date +%s) - start)) s"; } &&

# mmcv-lite is mmcv without operators. Once they are compiled they stay; the fork has no such package.
ifneq ($(wildcard $(VENV)/operators)$(filter onedl,$(STACK)),)
OPENMMLAB := $(VENV)/operators
else
OPENMMLAB := $(VENV)/lite
endif

.PHONY: demo test test-all lint install docs clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(OPENMMLAB) $(VENV)/mmtr
	$(BIN)/python demo/run.py

test: $(VENV)/test-tools
	$(PYTEST) -m "not slow"

test-all: test
	$(PYTEST) -m slow

lint: $(VENV)/test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vermin .

install: $(VENV)/operators $(VENV)/mmtr

$(BIN)/python:
	$(call step,Making a virtual environment in $(VENV)) \
	$(PYTHON) -m venv $(VENV) && time_taken

# Each step leaves a stamp, so that a broken install goes on where it stopped and a finished one is not repeated.
$(VENV)/torch: requirements/build.txt | $(BIN)/python
	$(call step,Installing torch and the build tools (half a minute to 5 minutes)) \
	$(PIP) "$(SETUPTOOLS_$(STACK))" -r requirements/build.txt && touch $@ && time_taken

$(VENV)/lite: requirements/openmmlab-lite.txt requirements/openmmlab-pins.txt $(VENV)/torch
	$(call step,Installing OpenMMLab with mmcv-lite: no compiler is needed (about a minute)) \
	$(PIP) -r requirements/openmmlab-lite.txt && touch $@ && time_taken

# mmcv-lite leaves first: both are the folder mmcv.
$(VENV)/operators: requirements/$(STACK).txt requirements/$(STACK)-pins.txt $(VENV)/torch
	$(call step,Installing OpenMMLab with mmcv's operators. They are compiled the first time: 8 to 15 minutes on 2 cores; \
	please wait.) \
	rm -f $(VENV)/lite && $(BIN)/python -m pip uninstall -qq -y mmcv-lite && \
	MMCV_WITH_OPS=1 $(PIP) --no-build-isolation -r requirements/$(STACK).txt && \
	{ $(BIN)/python -c "import mmcv.ops" || { echo "mmcv was built without its operators: run 'make clean' and 'pip cache remove \"*mmcv*\"', then again."; exit 1; }; } && \
	touch $@ && time_taken

$(VENV)/mmtr: setup.py requirements/runtime.txt requirements/$(STACK)-pins.txt $(VENV)/torch
	$(call step,Installing mmtr) \
	$(PIP) --no-build-isolation $(PINS) -r requirements/runtime.txt -e . && touch $@ && time_taken

# mmpretrain is optional, and transformers a reference of tests: each gets a folder of its own, which only those tests see
# that ask for it.
$(VENV)/test-tools: requirements/tests.txt requirements/tune.txt requirements/binary.txt \
		requirements/cls.txt requirements/hf.txt $(VENV)/operators $(VENV)/mmtr
	$(call step,Installing the test tools) \
	$(PIP) $(PINS) -r requirements/tests.txt && $(PIP) --no-deps -r requirements/binary.txt && \
	$(PIP) --no-deps --upgrade --target $(VENV)/mmpretrain -r requirements/cls.txt && \
	$(PIP) --upgrade --target $(VENV)/hf -r requirements/hf.txt && touch $@ && time_taken

# The site, in site/: an environment of its own, since sources are read and not imported. Warnings are errors.
docs: .venv-docs/installed
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "Open site/index.html; with search, by .venv-docs/bin/mkdocs serve"

.venv-docs/installed: requirements/docs.txt
	$(call step,Installing what makes the site) \
	$(PYTHON) -m venv .venv-docs && \
	.venv-docs/bin/python -m pip install -qq --disable-pip-version-check -r requirements/docs.txt && touch $@ && time_taken

clean:
	rm -rf $(VENV) .venv-docs site
