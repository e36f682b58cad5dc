# Each target sets up what it needs; each can be run again and reuses what is there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench gpu gpu-tests gpu-bench gpu-there clean

demo: .venv/installed
	$(BIN)/python configs/demo_corpus.py demo/corpus
	$(BIN)/mtplug-train configs/demo.yaml
	$(BIN)/mtplug-evaluate demo/run --show 8
	@echo
	@echo "curves: demo/run/curves.png; the whole run on a page: demo/run/report.html"
	@echo 'try: echo "Die Datei konnte nicht geöffnet werden." | $(BIN)/mtplug-translate demo/run'

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/mtplug-bench list
	$(BIN)/mtplug-bench run startup
	$(BIN)/mtplug-bench run train
	$(BIN)/mtplug-bench run attention

# GPU_PYTHON=python3 uses an environment that is there, with mtplug installed in it.
GPU_PYTHON ?= $(BIN)/python

gpu: gpu-tests gpu-bench

gpu-tests: gpu-there
	TRITON_INTERPRET=0 $(GPU_PYTHON) -m pytest -n auto --maxprocesses 8 tests/kernels tests/nn tests/architectures

gpu-bench: gpu-there
	$(GPU_PYTHON) -m mtplug.cli.bench run attention device=cuda lengths=[1024,8192,32768] seconds=2 \
		--output benchmarks/results/attention-gpu.json --plot benchmarks/results/attention-gpu.png

gpu-there: $(if $(filter $(BIN)/%,$(GPU_PYTHON)),.venv/installed)
	@$(GPU_PYTHON) -c 'import sys, torch; \
		sys.exit(None if torch.cuda.is_available() else f"make gpu: torch {torch.__version__} finds no NVIDIA GPU here")'

# Constraints keep pip from choosing a torch other than the tested one.
.venv/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("mtplug needs Python 3.10 or newer" if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv demo build *.egg-info
