# make demo    train two small models on real data with the instrument attached, about 12 minutes on 2 cores
# make test    lint, types and the test suite
# make results   the paper's tables and figures again, from real runs: two hours (results/README.md)
# make bench   what looking costs: every benchmark, into benchmarks/results.md, about 15 minutes on 2 quiet cores
# make coverage  which of transformers' model types it works on (docs/coverage.md)
# make matrix  the tests on other versions of Python, fairseq, transformers and torch (docs/versions.md)
# make ray-test  the tests that need Ray, which takes 240 MB (into .ray)
# make docs    the documentation, into site/ (open site/index.html)
# make lock    requirements-dev.txt and -docs.txt anew from the .in files; make audit   what is known against those packages
# make faults  kills, failing disks and damaged files, as many as docs/faults.md tells of: half an hour; goes on where stopped
#               (FRESH=1: all anew)
# Every target sets up .venv by itself, once; python3 must be 3.11 or 3.12 (PYTHON=python3.12 make test).

PYTHON ?= python3
EPOCHS ?= 3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test bench results coverage faults matrix docs lint setup ray-test lock audit clean

demo: setup
	$(BIN)/python examples/demo.py --epochs $(EPOCHS) $(if $(FRESH),--fresh)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

bench: setup
	$(BIN)/python benchmarks/report.py $(ONLY)

results: setup
	$(MAKE) -C results

coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.coverage $(FAMILIES)

matrix: setup
	$(BIN)/python -m tests.matrix $(if $(CELLS),--cells '$(CELLS)') $(if $(TESTS),--tests '$(TESTS)') $(if $(FRESH),--fresh)

ray-test: setup .ray/.ready
	PYTHONPATH=$(CURDIR)/.ray OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/plugins/test_ray.py

.ray/.ready:
	$(BIN)/python -m pip install --quiet --target .ray ray==2.60.0
	touch $@

faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults $(KINDS) $(if $(FRESH),--fresh)

docs: setup .venv/.docs
	$(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

.venv/.docs: requirements-docs.txt $(READY)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-docs.txt
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: $(READY)

$(READY): requirements-dev.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	    || { echo 'Python 3.11 or 3.12 is needed: PYTHON=python3.11 make ...'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
	    || { echo 'python3 -m venv is missing: sudo apt-get install python3-venv'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements-dev.in)"
	rm -rf headdynamics.egg-info  # what an older setup.py left hides the entry points of this one
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# Hashes for the pins of requirements-dev.in. torch stays outside: its builds differ from place to place.
lock: setup
	$(BIN)/uv pip compile --quiet --no-deps --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --no-emit-package torch --custom-compile-command 'make lock' requirements-dev.in -o requirements-dev.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --constraint requirements-dev.in --custom-compile-command 'make lock' requirements-docs.in -o requirements-docs.txt

# Known weaknesses of the pinned packages; fails too where one could not be looked up.
audit: setup
	$(BIN)/uv tool run pip-audit@2.10.1 --strict --disable-pip --require-hashes -r requirements-dev.txt
	$(BIN)/uv tool run pip-audit@2.10.1 --strict --disable-pip --require-hashes -r requirements-docs.txt

clean:
	rm -rf .venv .matrix .ray site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
