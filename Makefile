# Two commands on a fresh machine do everything: `make demo` and `make test`. Each makes .venv if it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-browser test-sinks lint bench docs clean

help:
	@echo "make demo       install, then run the main job on the bundled tasks (2 to 5 minutes)"
	@echo "make test       install, then run the tests in three lines: one of them over Flower's processes, which mostly wait"
	@echo "make test-long  the heavier checks: 10,000 random cases against the oracle"
	@echo "make test-browser  the report in Chromium, which must be installed, and what axe-core (npm) finds"
	@echo "make test-sinks    installs TensorBoard, MLflow and Weights & Biases too, then tells them rounds, offline"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the benchmarks' small forms, beside rivals, as one table (under 10 minutes)"
	@echo "make docs       installs mkdocs too, then builds the pages as a site into build/site; a broken link fails"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/matu run --config configs/demo.toml

test: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadgroup

test-long: $(STAMP)
	MATU_HYPOTHESIS=long $(BIN)/python -m pytest tests/vectors --timeout 3600 -o faulthandler_timeout=0
	$(BIN)/python -m pytest -m long -o faulthandler_timeout=0

test-browser: $(STAMP)
	npm install --silent --no-save --prefix build/axe axe-core@4
	MATU_AXE=build/axe/node_modules/axe-core/axe.min.js $(BIN)/python -m pytest -m browser

test-sinks: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[tensorboard,mlflow,wandb]'
	$(BIN)/python -m pytest -m sinks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/table.py

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html; to search in it: $(BIN)/python -m http.server --directory build/site"

clean:
	rm -rf .venv runs dist build
