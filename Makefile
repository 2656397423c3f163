# make demo   set everything up and run the main job on real images
# make test   set everything up and run all tests but those of the targets below
# make test-slow     those that take longest: ZeRO stages, signals, killed workers, searches, a benchmark on Ray (minutes)
# make quick  the tests of configuration, methods, models and data: below two minutes on two cores
# make docs   build the documentation into site/, and fail on a broken link
# make test-client   install the thin client, without torch and Ray, into an environment of its own and use it
# make test-compile  compile layers of all kinds, in bf16, of siblings, of teachers and of families (ten minutes)
# make test-export  export models of many kinds, and a sweep with its exports (minutes)
# make test-openvino   read exported files with OpenVINO
# make test-families   try every entry point of timm as source, student and teacher, and write docs/families_tables.md
# make test-hosts   kill parts of a local cluster of several hosts (root, about half an hour on two cores)
# make test-trackers   track runs with MLflow, W&B and TensorBoard, and read them back
# make test-browser   open the page of a sweep in Chromium (installs Debian's with apt-get)
# make test-notebook   execute the notebook of examples/: your own images to a timed model (minutes)
# make test-clouds   stores and image sets on emulators of Google Cloud Storage and Azure (five minutes; needs npm)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# four processes on two cores: they wait for Ray, servers and other processes much of the time (tests/conftest.py)
SIDE_BY_SIDE := -n 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick test-slow test-client test-compile test-export test-openvino test-hosts test-families test-browser test-trackers test-notebook test-clouds lint docs clean

demo: $(VENV)/.export
	PATH="$(CURDIR)/$(BIN):$$PATH" sh jobs/demo.sh

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# no Ray, no S3 server, nothing that trains for seconds
QUICK := tests/config tests/methods tests/models tests/data/formats/test_folder.py tests/data/test_batch.py \
	tests/data/test_check.py tests/data/test_convert.py tests/data/test_decode.py tests/data/test_sampler.py \
	tests/sweeps/test_arms.py tests/sweeps/test_packing.py \
	tests/training/test_objectives.py tests/compare/test_plan.py tests/compare/test_summary.py
SLOW := tests/methods/test_every_method.py tests/methods/test_any_size.py tests/methods/test_ligo.py \
	tests/methods/test_families.py tests/methods/test_other_packages.py tests/models/test_checkpointing.py \
	tests/models/test_compile.py tests/models/test_image_fit.py tests/models/test_search.py \
	tests/models/test_timm_folder.py

quick: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(QUICK) $(SLOW:%=--ignore=%)

test-client: $(VENV)/.dev
	$(BIN)/python -m pytest -m client

test-compile: $(VENV)/.dev
	$(BIN)/python -m pytest -m compiling

test-export: $(VENV)/.dev
	$(BIN)/python -m pytest -m export tests/delivery

test-openvino: $(VENV)/.openvino
	$(BIN)/python -m pytest -v -m openvino

test-hosts: $(VENV)/.dev
	$(BIN)/python -m pytest -v -m hosts

test-browser: $(VENV)/.browser
	$(BIN)/python -m pytest -v -m browser

test-trackers: $(VENV)/.trackers
	$(BIN)/python -m pytest -v -m trackers

test-notebook: $(VENV)/.notebook
	$(BIN)/python -m pytest -v -m notebook

test-clouds: $(VENV)/.clouds
	$(BIN)/python -m pytest -m clouds

test-families: $(VENV)/.dev
	$(BIN)/python -m benchmarks.families --out docs/families_tables.md

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/.runtime: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: Python 3.11 or later is needed (make PYTHON=python3.11)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -q && apt-get install -qy python3-venv; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements.txt into $(VENV) (about two minutes, once)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.export: $(VENV)/.runtime requirements-export.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-export.txt
	@touch $@

# the tests of --compile need a compiler, those of a company's own certificate openssl
$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt requirements-export.txt
	@command -v g++ >/dev/null || { apt-get update -q && apt-get install -qy g++ python3-dev; }
	@command -v openssl >/dev/null || { apt-get update -q && apt-get install -qy openssl; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/.browser: $(VENV)/.dev requirements-browser.txt
	@command -v chromium >/dev/null || { apt-get update -q && apt-get install -qy --no-install-recommends chromium; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-browser.txt
	@touch $@

$(VENV)/.openvino: $(VENV)/.dev requirements-openvino.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-openvino.txt
	@touch $@

$(VENV)/.trackers: $(VENV)/.dev requirements-trackers.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-trackers.txt
	@touch $@

$(VENV)/.notebook: $(VENV)/.dev requirements-notebook.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-notebook.txt
	@touch $@

$(VENV)/.clouds: $(VENV)/.dev requirements-clouds.txt
	@command -v npm >/dev/null || { apt-get update -q && apt-get install -qy npm; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-clouds.txt
	npm install --silent --no-audit --no-fund --prefix $(VENV)/azurite azurite@3.37.0
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime requirements-docs.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-docs.txt
	@touch $@

clean:
	rm -rf $(VENV) site
