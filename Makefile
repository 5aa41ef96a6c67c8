# Every target first makes .venv and installs into it when that is missing or stale.

PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
STAMP := .venv/.installed
# One more than the smallest machine has cores: tests that start processes wait for them.
WORKERS ?= 3

# One thread per worker, and nothing is fetched: the tests bring their own models. What Python compiles is kept, also where
# PYTHONDONTWRITEBYTECODE is set: many tests start a Python of their own, and pytest rewrites every assertion.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=

.PHONY: install demo test test-slow test-browser check bench audit clean

install: $(STAMP)
	@echo 'installed; now: . .venv/bin/activate'

demo: $(STAMP)
	$(BIN)/python -m expunge demo --overwrite $(ARGS)

test: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

# What takes minutes and changes with transformers alone: every architecture of docs/models.md.
test-slow: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) -m slow $(ARGS)

# The report in Chromium, which has to be there (apt-get install chromium).
test-browser: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	$(TEST_ENV) $(BIN)/python -m pytest -m browser tests/browser $(ARGS)

check: $(STAMP)
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

bench: $(STAMP)
	$(BIN)/python -m bench $(ARGS)

# Known vulnerabilities of the exact versions in constraints.txt; asks the advisory database, so it needs the network.
audit: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[audit]'
	$(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip $(ARGS)

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis dist
	find src tests bench experiments dev -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp holds the folder's own path, since an installed .venv does not survive a move.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@echo '$(CURDIR)' > $(STAMP)
