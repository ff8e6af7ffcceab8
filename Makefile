# Every target makes its own .venv from pinned versions; nothing but Python 3.11+ and make is needed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: demo test lint quick unit lowest docs site bench mutation processors trained clean

demo: .venv/demo.done  ## train, calibrate, stream, keep, retrain, report: a few minutes
	$(BIN)/drip demo --out drip-demo

test:  ## what continuous integration runs; lint and the lowest versions leave each other room
	$(MAKE) --output-sync=target --jobs=2 lint lowest
	$(MAKE) unit

lint: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: .venv/dev.done  ## one case of every test function that is not slow: under 90 seconds
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --quick -q

unit: .venv/dev.done
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

LOWEST_TESTS := tests/rules tests/store tests/sources tests/test_policy.py tests/test_policy_types.py \
	tests/test_pipeline.py tests/test_pipeline_resuming.py tests/test_pipeline_bad_samples.py \
	tests/test_media_images.py tests/test_media_audio.py tests/test_media_arrays.py tests/test_types.py \
	tests/test_testing.py tests/test_windows.py tests/test_files.py tests/reduction/test_sizes.py \
	tests/reduction/test_representativeness.py tests/reduction/test_cluster_centroids.py \
	tests/reduction/test_proto_dash.py tests/reduction/test_persistent_homology.py \
	tests/onnx/test_onnx_scorer.py tests/onnx/test_version_1.py tests/onnx/test_promised_versions.py

lowest: .venv-lowest/done  ## the rooms without torch, with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -o addopts=--strict-markers -n 2 --dist loadfile --quick -q $(LOWEST_TESTS)

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
	$(BIN)/python benchmarks/bench_versions.py
	$(BIN)/python benchmarks/bench_selectors.py
	$(BIN)/python benchmarks/bench_reduction.py
	$(BIN)/python benchmarks/install_size.py
	$(BIN)/python docs/generate.py

mutation: .venv/mutation.done  ## how many changed lines the tests notice: about an hour
	rm -rf mutants
	$(BIN)/mutmut run --max-children 2
	$(BIN)/python tests/mutation.py

processors: .venv/dev.done  ## one model file on emulated x86 and Arm processors; Debian only, a few minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/processors.py

trained: .venv/dev.done  ## trained ONNX files of public packages beside an independent autograd: a few minutes
	OMP_NUM_THREADS=1 $(BIN)/python tests/trained.py

clean:
	rm -rf .venv .venv-lowest drip-demo mutants

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv-lowest/done: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt --editable '.[device,mqtt,reduction]' \
		onnx hypothesis packaging pytest pytest-timeout pytest-xdist webdataset
	touch $@

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
