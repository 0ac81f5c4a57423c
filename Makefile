# `make demo` and `make test` set up what they need: a virtual environment in .venv with pinned dependencies.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
COMPARE := $(BIN)/tether compare examples/demo.toml --methods sync,local,easgd,ring,leader

.PHONY: demo test lint docs results clean

demo: .venv/tether
	@rm -rf runs/demo
	@$(COMPARE) --set data.partition=iid --out runs/demo/iid
	@$(COMPARE) --out runs/demo/classes
	@$(BIN)/tether report runs/demo

test: .venv/development
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadgroup

lint: .venv/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/development
	OMP_NUM_THREADS=1 $(BIN)/python docs/pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

# Every experiment of the papers that needs no data of its own, and the page about them: takes hours.
results: .venv/development
	$(BIN)/tether reproduce --all --out runs/results
	$(BIN)/tether gallery runs/results

.venv/tether: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing tether into .venv; PyTorch is large, this takes a minute or two."
	$(INSTALL) --editable '.[data,plot,report]'
	@touch $@

.venv/development: .venv/tether
	$(INSTALL) --editable '.[dev]'
	@touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv
