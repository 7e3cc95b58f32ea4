# Everything runs in .venv, which is made on first use. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DIGITS := experiments/digits
DEMO := build/demo

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED) $(DIGITS)/data/digits.onnx ## train a small network, search it, export the best point
	$(BIN)/autoq search $(DIGITS)/spec.yaml --latency-budget 75% --resume
	@rm -rf $(DEMO)
	$(BIN)/autoq export digits --select best --out $(DEMO)
	@echo "plot of the front: $${AUTOQ_HOME:-autoq-home}/artifacts/digits   exported model: $(DEMO)"

test: lint ## lint, then run all tests
	$(BIN)/pytest -q -n 2 --dist loadfile

lint: $(INSTALLED) ## check style, types and the import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## remove .venv, caches and the demo's outputs
	rm -rf $(VENV) $(DIGITS)/data build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(DIGITS)/data/digits.onnx: $(DIGITS)/train.py $(DIGITS)/model.py | $(INSTALLED)
	$(BIN)/python $(DIGITS)/train.py

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing autoq into $(VENV); the first time takes a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,postgresql]"
	@touch $@
