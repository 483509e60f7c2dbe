# What people type first. Every target makes what it needs; a second run of `make install` is instant.

PYTHON ?= python3
# Empty it (`make install CONSTRAINTS=`) to keep a torch that suits your GPU.
CONSTRAINTS ?= constraints.txt
EBB_HOME ?= $(HOME)/.ebb
PORT ?= 7070
GATEWAY_PORT ?= 7071

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
CONSTRAIN := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
INSTALLED := $(VENV)/.installed
DEV := $(VENV)/.dev
NATIVE := kernels/cpu/lib/libebb.so
SIDE_BY_SIDE := -n 3 --no-loadscope-reorder

.PHONY: help install dev up down test promises-platform promises-beside check check-types check-rest format clean

help:
	@echo "make up       install, start the platform, add a small model and print how to call it"
	@echo "make down     stop the platform"
	@echo "make install  make .venv and install Ebb into it"
	@echo "make test     install what tests need and run them (PYTEST_ARGS=… picks some)"
	@echo "make check    ruff, pyright, import directions, the rules of the house"
	@echo "make format   let ruff format the code"
	@echo "make clean    remove .venv and caches (the platform's state in $(EBB_HOME) stays)"

install: $(INSTALLED)

# 3.11 is needed; Debian keeps venv in a package of its own.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or newer, or name one: make install PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); Ebb needs Python 3.11 or newer. Name one: make install PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. Install its venv module (Debian, Ubuntu: apt-get install python3-venv) and run this again."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# `pip install --group`, which `make test` needs, came with 25.1.
$(INSTALLED): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) install --quiet --upgrade "pip>=25.1"
	$(PIP) install --progress-bar on $(CONSTRAIN) --editable .
	@touch $@

# Installing builds it, where there is a compiler; this is for when its sources have changed since.
$(NATIVE): $(wildcard kernels/cpu/csrc/*) kernels/cpu/build.py | $(INSTALLED)
	-@$(BIN)/python -m kernels.cpu.build

dev: $(DEV)

$(DEV): $(INSTALLED)
	$(PIP) install --progress-bar on $(CONSTRAIN) --group dev
	@touch $@

up: $(INSTALLED) $(NATIVE)
	@$(BIN)/ebb up --detach --demo --home "$(EBB_HOME)" --port $(PORT) --gateway-port $(GATEWAY_PORT)
	@echo "Stop it with:  make down      (the command line is $(BIN)/ebb)"

down: $(INSTALLED)
	@$(BIN)/ebb down --home "$(EBB_HOME)"

# Many wait for processes, so that three at a time keep two cores busy; the files that take longest come first
# (tests/conftest.py). The promises drive whole platforms: what shares one runs one after another, the rest beside it.
test: $(DEV) $(NATIVE)
ifdef PYTEST_ARGS
	$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --dist loadfile --ignore tests/promises
	@$(MAKE) --no-print-directory -j2 promises-platform promises-beside
endif

promises-platform: $(DEV) $(NATIVE)
	$(BIN)/python -m pytest tests/promises -m platform

promises-beside: $(DEV) $(NATIVE)
	$(BIN)/python -m pytest tests/promises -m "not platform"

check: $(DEV)
	@$(MAKE) --no-print-directory -j2 check-types check-rest

check-types: $(DEV)
	$(BIN)/pyright

check-rest: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/rules

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
