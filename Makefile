# Everything runs in .venv, made here from requirements.txt.
PYTHON = .venv/bin/python
# One thread each: the models are so small that a second one only waits.
PYTEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo quick test test-all lock bench gpu clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

setup: .venv/installed   ## make .venv, install requirements.txt and this checkout into it

.venv/installed: requirements.txt pyproject.toml
	python3 -m venv .venv
	$(PYTHON) -m pip install --disable-pip-version-check -q -r requirements.txt
	$(PYTHON) -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	touch .venv/installed

demo: setup      ## train on the built-in pictures, score, caption a few held-out ones
	$(PYTHON) train.py
	$(PYTHON) evaluate.py
	@echo
	$(PYTHON) -m nanocaption caption data/demo/images/scene_02200.jpg data/demo/images/scene_02201.jpg data/demo/images/scene_02202.jpg
	@echo "The pictures: data/demo/images. The run with its curves, scores.json and report.html: the newest in runs."

quick: setup     ## the tests of single modules, in less than a minute
	$(PYTEST) tests/unit

test: setup      ## lint, then all tests that need no GPU and no network
	$(PYTHON) -m ruff check .
	$(PYTEST)

# Twice, as tests that fork a training need a process in which none of autograd's threads was started.
test-all: test   ## and the long forms: many kills, ranks, fresh interpreters, the notebook, a browser
	$(PYTEST) -m "long and not gpu" tests/process tests/run/test_uneven.py
	$(PYTEST) -m "long and not gpu" tests/unit tests/run --ignore tests/run/test_uneven.py

lock:            ## make requirements.lock anew (needs uv), and docs/dependencies.md
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -q \
		requirements.txt requirements-demo.txt -o requirements.lock
	$(PYTHON) docs/dependencies.py

bench: setup     ## side-by-side measurements, into benchmarks/results.json and README.md
	$(PYTHON) benchmarks/run.py

gpu: setup       ## on a machine with a CUDA device: does all of it work there, and how fast; less than 8 minutes
	$(PYTHON) benchmarks/gpu.py

clean:           ## remove .venv; data and runs stay
	rm -rf .venv
