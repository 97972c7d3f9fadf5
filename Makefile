# Two commands do everything on a fresh machine:
#   make repro    create .venv, install, run the pipeline of params.yaml
#   make test     create .venv if missing, install, run the whole test suite

PYTHON ?= python3
VENV ?= .venv
# Another parameter file, merged over params.yaml, runs in a workspace of its own under build/.
PARAMS ?= params.yaml
JOBS ?= $(shell nproc)
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/installed

export PATH := $(BIN):$(PATH)
unexport PYTHONPATH

.PHONY: install repro reproduce test lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

ifeq ($(PARAMS),params.yaml)
repro: install
	$(MAKE) reproduce
else
WORKSPACE := build/$(basename $(notdir $(PARAMS)))
repro: install
	rm -rf $(WORKSPACE) && mkdir -p $(WORKSPACE)
	git ls-files -z | xargs -0 cp --parents --target-directory $(WORKSPACE)
	dynamo params --with $(PARAMS) > $(WORKSPACE)/params.yaml
	cd $(WORKSPACE) && dvc config --local core.no_scm true
	$(MAKE) --directory $(WORKSPACE) reproduce VENV=$(abspath $(VENV))
endif

# The same as `dvc repro`, sooner: cells do not depend on each other, so JOBS of them run at once,
# each stage by itself (-s), for only so do their locks not meet. What fails here fails again below.
LOCKED := dvc --wait-for-lock repro --quiet -s
reproduce:
	dvc repro pretrain prepare prepare_pool
	dvc stage list --name-only | sed -n 's/^eval//p' | xargs -n 1 -P $(JOBS) sh -c ' \
	    case $$0 in @*) $(LOCKED) train$$0 || exit 1 ;; esac; $(LOCKED) eval$$0 || exit 1' || true
	dvc repro

test: install
	python -m pytest

lint: install
	ruff check .
	ruff format --check .

clean:
	rm -rf build .pytest_cache .ruff_cache
