# make demo   virtual environment, install, one full run on the digits dataset
# make test   virtual environment, install, the tests
# make check  ruff and mypy as well
# make image  the Dockerfile's image, with docker or podman; BUILD="..." for options of `build`
# make lock   bring requirements.lock up to date (needs uv)

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Silence a question albumentations would ask a server at every import.
export NO_ALBUMENTATIONS_UPDATE = 1

ENGINE ?= $(shell command -v podman >/dev/null && echo podman || echo docker)
IMAGE  ?= ddchallenge
# Of a checkout without changes only: an image says no more of itself than is true.
COMMIT  = $(shell test -z "$$(git status --porcelain 2>/dev/null)" && git rev-parse HEAD 2>/dev/null)
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' ddchallenge/__init__.py)

.PHONY: demo test check image lock clean

demo: $(VENV)/installed
	$(BIN)/ddchallenge run --track generative --dataset digits
	@echo
	@echo "Next: . $(BIN)/activate && ddchallenge new mine"

test: $(VENV)/installed
	$(BIN)/python -m pytest

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The locked packages with their hashes first, then this checkout on top of them.
$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): PyTorch with CUDA and the rest, about 6 GB, a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

image:
	$(ENGINE) build $(BUILD) --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) \
		--tag $(IMAGE) .

lock:
	uv pip compile pyproject.toml --extra dev --group build --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--output-file requirements.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
