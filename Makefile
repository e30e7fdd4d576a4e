# Few verbs, each of which does its own set-up: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
# A wheel index for torch, for example one that carries CPU builds; empty: whatever pip is set up with.
PIP_FLAGS := -q -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)
SOURCES := pyproject.toml constraints.txt $(wildcard native/*)

.PHONY: install demo check test test-all bench conformance peers audit docs clean

install: $(VENV)/.dev  ## everything a developer needs, in .venv

$(VENV)/.engine: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_FLAGS) scikit-build-core nanobind
	$(BIN)/pip install $(PIP_FLAGS) --no-build-isolation -e ".[engine,report]"
	touch $@

$(VENV)/.demo: $(VENV)/.engine
	$(BIN)/pip install $(PIP_FLAGS) --no-build-isolation -e ".[engine,report,align,compress]"
	touch $@

$(VENV)/.dev: $(VENV)/.engine
	$(BIN)/pip install $(PIP_FLAGS) --no-build-isolation -e ".[dev]"
	touch $@

$(VENV)/.all: $(VENV)/.dev
	$(BIN)/pip install $(PIP_FLAGS) --no-build-isolation -e ".[dev,cluster,nixl,browser,deploy]"
	touch $@

demo: $(VENV)/.demo  ## align, compress, place and serve the default model, a worker killed; report in runs/demo
	$(BIN)/plait run recipes/demo.yaml --report

check: $(VENV)/.dev  ## style, types, architecture, size
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/size_report.py

test: $(VENV)/.dev  ## the fast suite, <= 10 minutes on two cores
	$(BIN)/python -m pytest -n 2 -m "not slow" --dist loadfile

test-all: $(VENV)/.all  ## everything, the large counted suites whole
	PLAIT_TEST_ALL=1 $(BIN)/python -m pytest -n 2 --dist loadfile --timeout 3600

bench: $(VENV)/.dev  ## every claim's quick run
	for b in $(filter-out bench/claim.py,$(wildcard bench/*.py)); do echo "== $$b"; $(BIN)/python $$b --quick || exit 1; done

conformance: $(VENV)/.dev  ## third-party clients, unmodified, against our server: minutes the first time
	TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python conformance/run.py $(CLIENTS)

peers: $(VENV)/.dev  ## the engines and trainers that ours are held against: minutes the first time
	TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python bench/peers/install.py

docs: $(VENV)/.dev  ## the reference in docs/reference, the page of figures, and the tests that run what the documents show
	$(BIN)/python docs/build.py
	$(BIN)/python docs/benchmarks.py
	$(BIN)/python -m pytest tests/docs

audit: $(VENV)/.dev  ## known vulnerabilities of what is installed; asks an advisory service
	$(BIN)/pip install $(PIP_FLAGS) pip-audit
	$(BIN)/pip-audit

clean:
	rm -rf build dist runs docs/reference .pytest_cache .mypy_cache .ruff_cache .hypothesis
