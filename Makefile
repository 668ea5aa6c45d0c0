# make demo   sets up .venv and runs the whole method on handwritten digits
# make test   sets up .venv and runs linters, types and tests

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: demo test lint setup clean

demo: $(VENV)/.ready-demo
	$(VENV)/bin/deepreduce demo --out demo

test: $(VENV)/.ready-test lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.ready-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(VENV)/.ready-test

$(VENV)/.ready-demo: pyproject.toml requirements/constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c requirements/constraints.txt -e '.[report,private]'
	touch $@

$(VENV)/.ready-test: pyproject.toml requirements/constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c requirements/constraints.txt -e '.[report,private,track,test]'
	touch $@ $(VENV)/.ready-demo

clean:
	rm -rf $(VENV) demo build *.egg-info
