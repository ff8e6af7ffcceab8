# Every target makes its own .venv from pinned versions; nothing but Python 3.11+ and make is needed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: demo test lint unit docs site bench mutation clean

demo: .venv/demo.done  ## train, calibrate, stream, keep, retrain, report: a few minutes
	$(BIN)/drip demo --out drip-demo

test: lint unit  ## what continuous integration runs

lint: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: .venv/dev.done
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --cov --cov-report=term

docs: .venv/dev.done  ## regenerate the pages that are made from code and result files
	$(BIN)/python docs/generate.py

site: docs  ## the documentation as a site that needs no network: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: export OMP_NUM_THREADS = 1
bench: .venv/bench.done  ## timings; refuses on a busy machine
	$(BIN)/python benchmarks/bench_policy.py
	$(BIN)/python benchmarks/bench_store.py
	$(BIN)/python benchmarks/bench_scoring.py
	$(BIN)/python benchmarks/bench_device.py
	$(BIN)/python benchmarks/bench_selectors.py
	$(BIN)/python benchmarks/bench_reduction.py
	$(BIN)/python benchmarks/install_size.py
	$(BIN)/python docs/generate.py

mutation: .venv/mutation.done  ## how many changed lines the tests notice: about an hour
	rm -rf mutants
	$(BIN)/mutmut run --max-children 2
	$(BIN)/python tests/mutation.py

clean:
	rm -rf .venv drip-demo mutants

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.done: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[torch]'
	touch $@

.venv/dev.done: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable '.[dev]'
	touch $@

.venv/mutation.done: .venv/dev.done
	$(PIP) --editable '.[dev,mutation]'
	touch $@

.venv/bench.done: .venv/dev.done
	$(PIP) --editable '.[dev,bench]'
	touch $@
