# make demo · test · check · bench: each first sets up the .venv it needs. `make help` says more.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
SETUP := pyproject.toml setup.py constraints.txt

.PHONY: help demo test check bench cuda clean

help:
	@echo 'make demo    a remote drafter and a target on this machine, over an emulated wide-area link'
	@echo 'make check   ruff, mypy --strict, the import contracts'
	@echo 'make test    check, then the tests; those marked gpu run where a GPU is'
	@echo 'make bench   the benchmarks, then ours beside other libraries; says what it skips here'
	@echo 'make cuda    build the CUDA extension (needs a CUDA build of torch, and nvcc)'
	@echo 'make clean   remove what these commands made'

demo: .venv/runtime.stamp
	$(BIN)/wanspec demo

# One worker a core, then one by one what would compete with itself.
test: check
	$(BIN)/python -m pytest -m 'not alone' -n logical --maxprocesses 8 -p no:benchmark
	$(BIN)/python -m pytest -m alone

check: .venv/dev.stamp
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo

bench: .venv/bench.stamp
	$(BIN)/python -m pytest bench --benchmark-only -rs
	$(BIN)/python -m bench.peers
	$(BIN)/python -m bench.attention_peers
	$(BIN)/python -m bench.cache_moves
	$(BIN)/python -m bench.target_pass

cuda: .venv/dev.stamp
	WANSPEC_BUILD_CUDA=1 $(PIP) --no-build-isolation --no-deps -e .

clean:
	rm -rf .venv build *.egg-info wanspec_kernels/_C*.so .benchmarks
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find wanspec_kernels drafter tests bench -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Python 3.11 or later is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	         'Name another: make PYTHON=python3.12 …' >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/runtime.stamp: $(SETUP) | $(BIN)/python
	$(PIP) -e .
	@touch $@

# The tools come on top of the runtime, so `make demo` has nothing left to do afterwards.
.venv/dev.stamp: $(SETUP) | $(BIN)/python
	$(PIP) -e '.[test,dev]'
	@touch .venv/runtime.stamp $@

.venv/bench.stamp: .venv/dev.stamp
	$(PIP) -e '.[bench]'
	@touch $@
