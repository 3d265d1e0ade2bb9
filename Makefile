# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.installed
RUN := runs/demo
DATA := runs/demo-data
JOBS ?= 3

.PHONY: demo test test-full check setup native clean

setup: $(SETUP)

$(SETUP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

# The optional extension that decodes parts of JPEGs: needs a C compiler and libjpeg-turbo's headers (libjpeg-dev).
native: $(SETUP)
	$(BIN)/pip install --quiet ./native

# Processes with one thread each: most of the tests' time is starting programs, and many threads on few cores only wait.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --durations 15

test-full: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) -m ''

check: $(SETUP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs

# The main job on embedded data: shards, pretraining, probes, exports, pictures.
demo: $(SETUP)
	$(BIN)/pretrain shards digits=true out=$(DATA)
	$(BIN)/python -m pretrain +experiment=mae_digits trainer=cpu name=demo \
	    'data.train=$(DATA)/train-*.tar' 'data.val=$(DATA)/val-*.tar' output_dir=$(RUN)
	$(BIN)/pretrain probe knn checkpoint=$(RUN) \
	    'train=$(DATA)/train-*.tar' 'val=$(DATA)/val-*.tar' out=$(RUN)/probe/knn.json
	$(BIN)/pretrain probe linear checkpoint=$(RUN) \
	    'train=$(DATA)/train-*.tar' 'val=$(DATA)/val-*.tar' out=$(RUN)/probe/linear.json
	$(BIN)/pretrain export checkpoint=$(RUN) format=timm out=$(RUN)/export/timm
	$(BIN)/pretrain export checkpoint=$(RUN) format=hf out=$(RUN)/export/hf
	@echo
	@echo "reconstruction  $$(ls $(RUN)/pictures/reconstruction_*.png | tail -1)"
	@echo "loss curve      $(RUN)/pictures/loss.png"
	@echo "probes          $(RUN)/probe/knn.json $(RUN)/probe/linear.json"
	@echo "exports         $(RUN)/export/timm $(RUN)/export/hf"
