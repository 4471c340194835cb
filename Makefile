# Everything runs in .venv, made here from requirements.txt.
PYTHON = .venv/bin/python

.PHONY: help setup demo test bench clean

help:            ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

setup: .venv/installed   ## make .venv and install requirements.txt

.venv/installed: requirements.txt
	python3 -m venv .venv
	$(PYTHON) -m pip install --disable-pip-version-check -q -r requirements.txt
	touch .venv/installed

demo: setup      ## train on the built-in pictures, score, caption a few held-out ones
	$(PYTHON) train.py
	$(PYTHON) evaluate.py
	@echo
	$(PYTHON) caption.py data/demo/images/scene_02200.jpg data/demo/images/scene_02201.jpg data/demo/images/scene_02202.jpg
	@echo "The pictures: data/demo/images. The run with its curves, scores.json and report.html: the newest in runs."

test: setup      ## lint, then all tests that need no GPU and no network
	$(PYTHON) -m ruff check .
	# One thread each: the models are so small that a second one only waits.
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench: setup     ## side-by-side measurements, into benchmarks/results.json and README.md
	$(PYTHON) benchmarks/run.py

clean:           ## remove .venv; data and runs stay
	rm -rf .venv
