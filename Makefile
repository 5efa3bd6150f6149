# One way to run things; CI calls the same targets.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
KERNELS := $(wildcard generator_svc/kernels/*.[ch])
# cpu or gpu: which builds of FAISS and ONNX Runtime go into a new environment.
DEVICE ?= cpu
# Two cores are shared by several processes here: one pool each, set on purpose.
export OMP_NUM_THREADS ?= 2
# Processes that tests run in, a file in one of them.
WORKERS ?= 2

# With the compatible mode, `import ragserve` also works in the folder that holds a clone named `ragserve`: the folder is
# on sys.path, where a package goes before the clone, which Python would else take for a namespace package.
EDITABLE := --config-settings editable_mode=compat --editable

.PHONY: help install demo check test test-long bench gpu protos format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## create the environment and install what is missing

$(STAMP): pyproject.toml $(KERNELS)
	@echo "installing into $(VENV): about two minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(EDITABLE) '.[all,$(DEVICE),dev]'
	touch $@ $(DEMO_STAMP)

# What the services need, without the tools of development.
$(DEMO_STAMP): pyproject.toml $(KERNELS)
	@echo "installing into $(VENV): about two minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(EDITABLE) '.[all,$(DEVICE)]'
	touch $@

demo: $(DEMO_STAMP) ## start the three services with the embedded models and answer questions
	$(BIN)/ragserve demo

check: $(STAMP) ## lint, types, protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	PYTHON=$(BIN)/python scripts/protos.sh --check

test: $(STAMP) ## everything but the big counts, under six minutes on two cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'not long'

test-long: $(STAMP) ## the big counts
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m long

bench: $(STAMP) ## measure against peers; appends to bench/results/
	$(BIN)/python -m bench

gpu: ## checks and figures on a GPU, with the Python that has CUDA builds: make gpu PYTHON=python3
	$(PYTHON) -m pytest tests/gpu -W default
	$(PYTHON) -m bench --only generator --device cuda --precisions float32 bfloat16
	$(PYTHON) -m bench --only gpu_generator
	$(PYTHON) -m bench.gpu_index

protos: $(STAMP) ## regenerate the stubs
	PYTHON=$(BIN)/python scripts/protos.sh

format: $(STAMP) ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
