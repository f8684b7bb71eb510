# What a newcomer types. `make help` lists it.
#   PYTHON=python3.12   another Python (3.10 or newer) for .venv
#   TORCH_INDEX=URL     another index for torch alone, e.g. https://download.pytorch.org/whl/cu126
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
PIP := PIP_ROOT_USER_ACTION=ignore $(PY) -m pip --disable-pip-version-check install -qq --no-compile -c constraints.txt
export PYTHONUTF8 := 1
IMPORTS := hypothesis.strategies, importlib, ipykernel.kernelapp, mrhd_nb, nbconvert, nbdev.test, papermill, pkgutil, pytest, \
  scipy.optimize, scipy.signal, scipy.stats, seaborn, torch._dynamo, torch.distributed.launcher.api, xdist

.DEFAULT_GOAL := help
.PHONY: help setup demo test prepare docs figures lab wheel release clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s  %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## make .venv with every version pinned (a second run does nothing)

# pip writes no bytecode (--no-compile): Python does that on first import, and only for what is imported. That import is made here,
# also where the environment forbids bytecode: without it, each start compiles torch anew, for a second and a half.
# setuptools comes first so that the editable install needs no build environment of its own.
$(READY): constraints.txt settings.ini setup.py
	$(if $(shell $(PYTHON) -c 'import sys; print(sys.version_info >= (3, 10) or "")' 2>/dev/null),,\
	  $(error mrhd_nb needs Python 3.10 or newer, and PYTHON=$(PYTHON) is not: name one, e.g. make setup PYTHON=python3.12))
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: python3-venv)" >&2; exit 1; }
	@echo "Setting up $(VENV) from constraints.txt; torch is the one large download"
	@$(PIP) pip setuptools
	@test -z "$(TORCH_INDEX)" || $(PIP) --no-deps --index-url "$(TORCH_INDEX)" torch
	@$(PIP) --no-build-isolation -e '.[dev,docs,export,video]'
	@env -u PYTHONDONTWRITEBYTECODE $(PY) -W ignore -c "import $(IMPORTS); \
	  [importlib.import_module(m.name) for m in pkgutil.walk_packages(mrhd_nb.__path__, 'mrhd_nb.')]"
	@touch $@

demo: $(READY)  ## train, score and draw both systems on the embedded benchmark; finished steps are not repeated
	@$(VENV)/bin/mrhd demo --out runs/demo

figures: $(READY)  ## make demo, then put its figures into figures/, each beside its data, and its TaskWeave into the package
	@$(VENV)/bin/mrhd demo --out runs/demo --figures figures
	@mkdir -p mrhd_nb/weights && cp runs/demo/taskweave_mr2hd-0/last.safetensors mrhd_nb/weights/taskweave_mr2hd.safetensors

test: $(READY)  ## run every test, the notebooks included
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n logical --maxprocesses 8 --dist loadgroup tests

prepare: $(READY)  ## before a commit: export the notebooks, clean them, test
	$(VENV)/bin/nbdev_export
	$(VENV)/bin/nbdev_clean
	@$(MAKE) --no-print-directory test

docs: $(READY)  ## build the site from the notebooks into runs/site
	@$(PY) -m sphinx -q -W --keep-going -b html docs runs/site
	@echo "runs/site/index.html"

lab: $(READY)  ## open JupyterLab on the reading order
	@$(VENV)/bin/jupyter lab --config .ci/lab.py nbs/index.ipynb

wheel: $(READY)  ## build dist/*.whl
	@$(PY) -m build --wheel --no-isolation

release: $(READY)  ## build dist/*.whl and dist/*.tar.gz afresh, and check what a package index will show
	@rm -rf dist
	@$(PY) -m build --no-isolation
	@$(PY) -m twine check --strict dist/*

clean:  ## remove what builds and tests leave behind; .venv, data and runs stay
	@rm -rf build dist *.egg-info .pytest_cache .hypothesis
	@find mrhd_nb tests nbs \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
