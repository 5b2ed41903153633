# Two commands do all set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SLOW ?= slow

.PHONY: setup setup-reference setup-compile quickstart test test-slow lint docs docs-check notebook clean

# If the stamp is older than one of its sources, the environment is updated.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt -e '.[dev]'
	touch $@

setup: $(VENV)/installed

# torch and transformers, for comparisons that are otherwise skipped
setup-reference: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,reference]'

# the compiler of `gptjax.plan --compile`, for GPUs that need not be here (240 MB to fetch)
setup-compile: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,compile]'

quickstart: setup
	$(BIN)/python -m gptjax.train --config quickstart
	$(BIN)/python -m gptjax.generate --run runs/quickstart --prompt "    def __init__(self" \
	  --max-new-tokens 120 --temperature 0.7 --top-k 50 --seed 1
	@echo
	@echo "curves: runs/quickstart/loss.png   the same command again resumes or shows it is complete"

test: setup
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -n 2 -m "$(SLOW)"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

docs-check: setup
	$(BIN)/python docs/check.py

notebook: $(VENV)/installed-docs
	$(BIN)/jupyter-execute docs/first_hour.ipynb

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
