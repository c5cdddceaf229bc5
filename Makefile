# Everything sets itself up: `make demo`, `make test`, `make test-long`, `make fuzz`, `make check`, `make test-engines`,
# `make bench`.
PYTHON := .venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Some containers forbid it, and then each of the hundreds of processes that tests start compiles all modules.
export PYTHONDONTWRITEBYTECODE :=

# Whole files in as many processes, those that take longest first. Many tests wait more than they compute.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder

# Of random pages, in `make fuzz`; `make test` reads them for a few seconds.
FUZZ_SECONDS := 60

.PHONY: help demo test test-long fuzz check test-engines bench bench-performance format clean
help:
	@echo "make demo          watch two simulated servers, without a GPU"
	@echo "make test          the fast tests"
	@echo "make test-long     what takes minutes: thousands of scrapes, a thousand servers, the image's steps"
	@echo "make fuzz          a minute of random pages; FUZZ_SECONDS=600 for ten"
	@echo "make check         style, types and layers"
	@echo "make test-engines  tests against real vLLM and llama.cpp servers (installs about 4 GB once)"
	@echo "make bench         measurements"

demo:
	@tools/setup.sh
	@bin=$$(tools/prometheus.sh) || bin=; PATH="$${bin:+$$bin:}$$PATH" .venv/bin/brimline demo

test:
	@tools/setup.sh dev
	@bin=$$(tools/prometheus.sh) && deploy=$$(tools/deployment.sh) && \
		PATH="$$bin:$$deploy:$$PATH" $(PYTHON) -m pytest $(SIDE_BY_SIDE) -m "not long" tests/integration tests/unit

test-long:
	@tools/setup.sh dev
	@bin=$$(tools/prometheus.sh) && deploy=$$(tools/deployment.sh) && \
		PATH="$$bin:$$deploy:$$PATH" $(PYTHON) -m pytest -m long tests/integration tests/unit

fuzz:
	@tools/setup.sh dev
	$(PYTHON) -m pytest --fuzz-seconds $(FUZZ_SECONDS) tests/unit/exposition_text/test_fuzz.py

check:
	@tools/setup.sh dev
	.venv/bin/ruff format --check exporter dashboards tests benchmarks tools deploy
	.venv/bin/ruff check exporter dashboards tests benchmarks tools deploy
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

test-engines:
	@tools/setup.sh dev
	@bin=$$(tools/prometheus.sh) && PATH="$$bin:$$PATH" $(PYTHON) -m pytest tests/engines

bench:
	@tools/setup.sh dev
	@bin=$$(tools/prometheus.sh) && export PATH="$$bin:$$PATH" && \
		for file in benchmarks/bench_*.py; do $(PYTHON) $$file || exit 1; done

# As bench, for the table of docs/performance.md alone, which it writes.
bench-performance:
	@tools/setup.sh dev
	@$(PYTHON) benchmarks/bench_performance.py --write

format:
	@tools/setup.sh dev
	.venv/bin/ruff format exporter dashboards tests benchmarks tools deploy
	.venv/bin/ruff check --fix exporter dashboards tests benchmarks tools deploy

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
