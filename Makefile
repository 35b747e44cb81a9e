# The whole contributor loop. `make demo` and `make test` need nothing but Python >= 3.11 and pip.
SHELL := bash
PYTHON ?= python3
DEMO_OUT ?= demo
BIN := .venv/bin
STAMP := .venv/.installed
TYPED := pliant runtime/pliant_runtime tests tools $(sort $(dir $(wildcard bench/*.py examples/*.py)))

.PHONY: help env demo test test-slow lint format types budgets catalogue docs check lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(STAMP)  ## install everything into .venv

# An installation that was interrupted starts over; a finished one that is merely older than the lock is brought up to
# date in place. torch comes first and alone, so that nothing else gets to choose another one.
$(STAMP): requirements.lock pyproject.toml runtime/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pliant needs Python >= 3.11; set PYTHON=...")'
	@if [ -e .venv/.installing ] || ! [ -x $(BIN)/pip ]; then rm -rf .venv; fi
	@mkdir -p .venv && touch .venv/.installing
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e runtime -e .
	@rm .venv/.installing && touch $@

demo: env  ## the whole path on embedded real data, in about a minute; results in ./demo
	$(BIN)/pliant demo --out $(DEMO_OUT) $(DEMO)

# Two workers on one thread each: more threads only fight over the same two cores.
test: export OMP_NUM_THREADS = 1
test: env  ## the fast tests; real data sets are used where PLIANT_DATA names their folder
	$(BIN)/python -m pytest -n 2 --durations=10

test-slow: export OMP_NUM_THREADS = 1
test-slow: env  ## the full matrix, long fuzzing, big networks
	$(BIN)/python -m pytest -n 2 -m slow --timeout=3600

lint: env  ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: env  ## let ruff mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: env  ## mypy --strict
	$(BIN)/mypy --strict $(TYPED)

budgets: env  ## sizes of files, functions and signatures; copied code
	$(BIN)/python -m tools.budgets

catalogue: env  ## write docs/methods.md and docs/results.md anew
	$(BIN)/python -m tools.catalogue

docs: env  ## the site, into ./site
	$(BIN)/python -m tools.catalogue --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: test lint types budgets docs  ## all that CI runs
	$(MAKE) demo DEMO=--short DEMO_OUT=demo-short

lock: env  ## write requirements.lock from what is installed
	{ grep '^#' requirements.lock; $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip \
	    | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:  ## remove everything that was built
	rm -rf .venv site demo demo-short build dist *.egg-info runtime/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
