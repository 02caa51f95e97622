# Creates .venv and runs commands in it. Needs only make and Python 3.10 or newer.
#
#   make demo       install dymn without PyTorch and tag the recordings in examples/audio
#   make test       install everything, check style and types, run the tests, build the wheel and try it without PyTorch
#   make page       build the files that the web page runs in the browser (needs npm): make page MODEL=NAME
#   make wheels     build wheels with compiled code for Linux, macOS and Windows
#   make platforms  run the wheels on ARM and in Debian 13 (needs Linux, root, mmdebstrap and qemu-user-static)
#   make docs       build the documentation into site/
#   make nodes      test training on two machines, one of which fails (Linux; as root also in network namespaces)
#   make fuzz       test every entry point with hostile input: make fuzz CASES=40000 SEED=1
#   make faults     run the tests that take minutes: faults of docs/faults.md, and the export of a whole network
#   make audit      compare the installed packages with known vulnerabilities (needs a network connection)
#   make bench      measure the speed of networks, front end and tagging
#   make measure    measure zero-shot accuracy, memory for twelve hours, speed: make measure ESC10=FOLDER MODEL=NAME
#   make clean      remove everything that these targets created, including .venv

PYTHON ?= python3
VENV ?= .venv
TRIAL := build/trial
MODEL ?= dymn04_open
ESC10 ?= ../shared/esc10
CASES ?= 40000
SEED ?= 1

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

.PHONY: help demo test lint types tests nodes package page wheels platforms docs fuzz faults audit bench measure clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed
	$(BIN)/dymn tag examples/audio --model dymn04_open --top-k 3

test: lint types tests package

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev
	$(BIN)/mypy

tests: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

nodes: $(VENV)/.dev
	OMP_NUM_THREADS=1 DYMN_TEST_NODES=1 $(BIN)/python -m pytest tests/test_training_elastic.py

# The wheel and the sdist, and the wheel without PyTorch: commands, and the numbers that PyTorch gives.
# Both hold the browser's network; where npm is missing, `make package` leaves it out.
package: $(VENV)/.dev $(if $(shell command -v npm),page)
	rm -rf dist $(TRIAL)
	@command -v npm > /dev/null || echo "npm is missing: these packages lack the network that the page of dymn serve runs in the browser." >&2
	$(BIN)/python -m build --no-isolation --sdist --wheel --outdir dist
	$(BIN)/python platforms/parity.py write $(TRIAL)/numbers
	$(PYTHON) -m venv $(TRIAL)
	$(TRIAL)/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd $(TRIAL) && $(CURDIR)/platforms/commands.sh bin $(CURDIR)/examples/audio
	cd $(TRIAL) && bin/python $(CURDIR)/platforms/parity.py check numbers
	rm -rf $(TRIAL)

# What `dymn serve` needs to run a network in the browser.
page: $(VENV)/.dev
	$(BIN)/python web/install.py $(MODEL)

# Wheels with compiled code for every platform, made on any: the compiler is a Python package.
wheels: page
	$(INSTALL) ziglang
	for platform in manylinux2014_x86_64 manylinux2014_aarch64 macosx_11_0_x86_64 macosx_11_0_arm64 win_amd64; do \
		DYMN_WHEEL_FOR=$$platform $(BIN)/python -m build --no-isolation --wheel --outdir dist || exit 1; \
	done

# The wheels for ARM and for Debian 13 with its Python 3.13, run in root folders of Debian below build/platforms.
platforms: $(VENV)/.dev
	$(INSTALL) ziglang
	$(BIN)/python platforms/check.py arm64
	$(BIN)/python platforms/check.py trixie

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "Open site/index.html"

fuzz: $(VENV)/.dev
	cd tests && OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m fuzz --cases $(CASES) --seed $(SEED)

audit: $(VENV)/.dev
	$(INSTALL) pip-audit
	$(BIN)/pip-audit --skip-editable

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/network.py --table
	$(BIN)/python benchmarks/front_end.py
	$(BIN)/python benchmarks/tagging.py

measure: $(VENV)/.dev
	$(BIN)/python benchmarks/zero_shot.py $(ESC10) --model $(MODEL)
	$(BIN)/python benchmarks/long_file.py --model $(MODEL) --hours 12
	$(BIN)/python benchmarks/front_end.py
	$(BIN)/python benchmarks/tagging.py
	$(BIN)/python benchmarks/tagging.py --wav

faults: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/slow_faults.py tests/slow_export.py
	$(BIN)/python benchmarks/serve_load.py --seconds 120
	rm -rf build/bulk
	$(BIN)/python benchmarks/bulk.py --folder build/bulk
	$(BIN)/python benchmarks/bulk.py --folder build/bulk --kill

clean:
	rm -rf $(VENV) build dist site web/node_modules src/dymn/serve/page/vendor .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "dymn needs Python 3.10 or newer; $(PYTHON) is older. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "No environment could be made. On Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing dymn into $(VENV) ..."
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing dymn and what its tests need into $(VENV) ..."
	@$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing dymn and what its documentation needs into $(VENV) ..."
	@$(INSTALL) --editable '.[docs]'
	@touch $@ $(VENV)/.installed
