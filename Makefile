# Everything here works from nothing and does nothing twice. `make` alone lists the targets.

PYTHON_IN_VENV := .venv/bin/python
READY := .venv/.ready
WEB_READY := web/node_modules/.ready
PAGE := src/saccade/explorer/page/.built

.DEFAULT_GOAL := help
.PHONY: help setup demo page browser test check sanitize bench bench-page docs clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1 \2/p' Makefile | \
	  awk '{ command = $$1 " " $$2; $$1 = $$2 = ""; printf "  %-12s%s\n", command, $$0 }'

setup: $(READY) browser ## make .venv with all that the other targets need
	@echo "setup: .venv is ready"

# The stamp is the last thing that a set-up writes, so an interrupted one is resumed.
$(READY): pyproject.toml constraints.txt scripts/setup.sh CMakeLists.txt $(wildcard native/*.h native/*.cpp)
	@sh scripts/setup.sh

# Without optional things like scripts to run after installing.
$(WEB_READY): web/package.json web/package-lock.json
	@command -v npm >/dev/null || { echo "npm is needed to build and test the page: install Node.js 20 or later"; exit 1; }
	@cd web && npm ci --no-progress --loglevel=error && touch node_modules/.ready

# The served page, and then the same in one file for saved pages and notebooks.
$(PAGE): $(WEB_READY) web/index.html web/vite.config.ts web/svelte.config.js $(shell find web/src web/public -type f)
	@cd web && npm run --silent build && touch ../$(PAGE)

page: $(PAGE) ## build the browser page into the package

browser:
	@sh scripts/browser.sh

# A process for each core; threads that wait let the others' run.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(PYTHON_IN_VENV) -m pytest -q -n auto --maxprocesses 4

# The page is built where it can be: without Node, everything else works.
demo: $(READY) $(if $(shell command -v npm),$(PAGE)) ## show where a pretrained model looks in one sentence
	@HF_HUB_OFFLINE=1 .venv/bin/saccade show "He left the roses by the bank."
	@echo; echo "The same in a browser: .venv/bin/saccade explore"

test: $(READY) $(PAGE) browser ## run the tests
	@cd web && npm test --silent
	@$(PYTEST)

check: $(READY) $(WEB_READY) ## format, lint, types, import layers
	@cd web && npm run --silent check
	@.venv/bin/ruff format --check --quiet --diff
	@.venv/bin/ruff check --quiet
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo

# OpenMP's runtime is not built for ThreadSanitizer, which would call its barriers races.
sanitize: ## run the kernels under the address, undefined-behavior and thread sanitizers
	@cmake -S . -B build/sanitize-address -DSACCADE_TESTS=ON -DSACCADE_SANITIZE=address,undefined >/dev/null
	@cmake -S . -B build/sanitize-thread -DSACCADE_TESTS=ON -DSACCADE_SANITIZE=thread -DSACCADE_STD_THREADS=ON >/dev/null
	@for build in build/sanitize-address build/sanitize-thread; do \
	  cmake --build $$build --parallel 2 >/dev/null && $$build/kernels_test || exit 1; done

bench: $(READY) ## time attention, recording and analyses against their peers, compare models with eager; writes docs/benchmarks
	@$(PYTHON_IN_VENV) benchmarks/attention.py --write
	@$(PYTHON_IN_VENV) benchmarks/recording.py --write
	@$(PYTHON_IN_VENV) benchmarks/analysis.py --write
	@$(PYTHON_IN_VENV) benchmarks/agreement.py --write

bench-page: $(READY) $(PAGE) browser ## time the page in Chromium; writes docs/benchmarks
	@$(PYTHON_IN_VENV) benchmarks/page.py --write

docs: $(READY) $(PAGE) browser ## draw the pictures of the guides and of the page again; writes docs/images
	@$(PYTHON_IN_VENV) scripts/guides.py
	@$(PYTHON_IN_VENV) scripts/page_pictures.py

clean: ## delete caches and build results (.venv stays; delete it by hand to start over)
	@rm -rf build dist src/saccade/explorer/page .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
