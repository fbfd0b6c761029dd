# The commands of a person who has just cloned this. Each sets up what it needs, on Debian 12 or 13; see scripts/setup.sh.

SHELL := /bin/bash
VENV := .venv/bin
FUZZ_SECONDS := 150
# processes that run tests, each with a pool of its own, see tests/workers.py
WORKERS := 2
LAB_HOST := tests/lab/test_lab.py
WITHOUT_LAB := --ignore=$(LAB_HOST) --ignore=tests/lab/test_figures.py
# never the caller's own environment
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

.PHONY: help setup demo test test-lab coverage fuzz soak lab bench clean

help:
	@echo "make demo    run a notebook inside a VM and show where it ran; the result is build/demo/quickstart.ipynb"
	@echo "make lab     open JupyterLab with the kernel in its launcher; LAB_OPTIONS=... are options for it"
	@echo "make test    run all checks and tests, on real VMs, at last those of KVM and vsock in an emulated host"
	@echo "make test-lab   only these, and ratios to stock ipykernel there; RELEASE=trixie: the host is Debian 13"
	@echo "make coverage   the tests once more, measured: how much of vm_kernel they run, kernels and services included"
	@echo "make fuzz    ten minutes of fuzzing of what reads a guest's bytes; FUZZ_SECONDS=... for each target"
	@echo "make soak    300 sessions with random kills: nothing may be left; build/soak.png shows the service's memory"
	@echo "make bench   measure against stock ipykernel; the result is benchmarks/latest.json"
	@echo "make clean   stop the pool service and remove what the above made in this folder"

setup:
	@scripts/setup.sh

demo: setup
	@$(VENV)/vm-kernel run --output-dir build/demo examples/quickstart.ipynb
	@echo; echo "Setting up:"; cat build/setup-times

test:
	@scripts/setup.sh lab test dev
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy
	@rm -rf build/pytest
	$(VENV)/pytest $(WITHOUT_LAB) -o cache_dir=build/pytest -n $(WORKERS) --no-loadscope-reorder || \
	    scripts/once-more.sh $$? $(WITHOUT_LAB) -o cache_dir=build/pytest
# the lab host wants the machine for itself
	$(VENV)/pytest $(LAB_HOST) -o cache_dir=build/pytest || scripts/once-more.sh $$? $(LAB_HOST) -o cache_dir=build/pytest

# the whole story is in build/lab.log, the figures are in build/lab
test-lab: export VM_KERNEL_LAB_RELEASE = $(or $(RELEASE),bookworm)
test-lab:
	@scripts/setup.sh lab test dev
	$(VENV)/pytest tests/lab

# Whoever is killed leaves no record, so the figure is a little lower than the truth. Everybody writes into the folder.
coverage: export COVERAGE_FILE = $(CURDIR)/build/coverage/data
coverage:
	@scripts/setup.sh lab test dev
	@rm -rf build/coverage; mkdir -p build/coverage; chmod 1777 build/coverage
	$(VENV)/coverage run -m pytest $(WITHOUT_LAB)
	@$(VENV)/coverage combine -q
	$(VENV)/coverage report --skip-covered --fail-under=92

fuzz:
	@scripts/setup.sh test dev
	@set -e; for target in $$($(VENV)/python -m tests.fuzz --list); do \
		echo "== $$target"; $(VENV)/python -m tests.fuzz $$target --seconds $(FUZZ_SECONDS) --seed 0; done

soak:
	@scripts/setup.sh test dev
	$(VENV)/python -m tests.soak

lab:
	@scripts/setup.sh lab
	$(VENV)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_OPTIONS) examples/quickstart.ipynb

bench: setup
	$(VENV)/python -m benchmarks

clean:
	-@[ ! -x $(VENV)/vm-kernel ] || $(VENV)/vm-kernel pool stop
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
