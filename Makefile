# `make demo` and `make test` set up what they need in .venv, and again only when what they depend on changes.

PYTHON ?= python3
DECLARED := pyproject.toml constraints.txt
ENVIRONMENTS := .venv .venv-bench .venv-others .venv-executorch .venv-docs
# torch by itself and first: resolved together with the rest, a build for another device may win.
INSTALL_TORCH = install --constraint constraints.txt torch

.DEFAULT_GOAL := help
.PHONY: help demo test latency nightly laws mutants determinism docs site executorch browser lint bench venv bench-env clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.installed ## train a small ResNet, quantize it by passes, show what that gained
	.venv/bin/lowbit demo

# A process a core; with threads beside them, they would wait for each other.
test: .venv/.installed ## run the tests
	OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses auto --dist worksteal

nightly: .venv/.installed ## run the tests with other examples in the property tests every time
	HYPOTHESIS_PROFILE=nightly .venv/bin/pytest

determinism: .venv/.installed ## write graphs, diffs and JSON in 200 processes, and compare the bytes
	LOWBIT_DETERMINISM_PROCESSES=20 .venv/bin/pytest tests/determinism

# An hour and a half of processor for 10,000 graphs a pass; LOWBIT_LAW_EXAMPLES=1000 make laws tries fewer.
laws: .venv/.installed ## check the laws of every pass on as many other graphs as `make nightly` does
	HYPOTHESIS_PROFILE=nightly OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses auto --dist worksteal tests/tools/testing/test_laws.py

mutants: .venv/.installed ## seed faults in the passes, and see that the laws catch them
	.venv/bin/python tests/tools/testing/mutate.py

docs: .venv/.installed ## write docs/capabilities.md, and what the code of the pages prints, anew
	(sed -n '/^## /q;p' docs/capabilities.md && .venv/bin/lowbit capabilities --markdown) > docs/capabilities.new
	mv docs/capabilities.new docs/capabilities.md
	LOWBIT_WRITE_DOCS=1 .venv/bin/pytest tests/test_docs.py

site: .venv-docs/.installed ## build the documentation, out/site/index.html
	.venv-docs/bin/sphinx-build --fail-on-warning --keep-going --quiet -d out/site-doctrees docs out/site
	@echo "see out/site/index.html"

executorch: .venv-executorch/.installed ## let ExecuTorch's XNNPACK partitioner take converted models, and run them
	.venv-executorch/bin/pytest tests/backends/xnnpack/test_executorch.py

browser: .venv/.browser ## try the report in Chromium, which has to be installed
	.venv/bin/pytest tests/browser/report_in_chromium.py

.venv/.browser: .venv/.installed
	.venv/bin/pip install --constraint constraints.txt --editable '.[browser]'
	touch $@

lint: .venv/.lint ## check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright --pythonpath .venv/bin/python

bench: .venv-bench/.installed ## measure all but latency, next to torchao, and write benchmarks/RESULTS.md
	.venv-bench/bin/python benchmarks/graph_work.py --write
	.venv-bench/bin/python benchmarks/calibration.py --write
	.venv-bench/bin/python benchmarks/accuracy.py --write
	.venv-bench/bin/python benchmarks/qat_graph_work.py --write
	.venv-bench/bin/python benchmarks/qat.py --write
	.venv-bench/bin/python benchmarks/overhead.py --write
	.venv-bench/bin/python benchmarks/numeric_verification.py --write

# A run that was stopped goes on where it was.
latency: .venv-bench/.installed .venv-others/.installed ## time compiled models next to torchao, OpenVINO and ONNX Runtime: hours
	.venv-bench/bin/python benchmarks/latency.py --keep .venv-bench/latency.jsonl --write
	rm .venv-bench/latency.jsonl

venv: .venv/.installed ## set up .venv
bench-env: .venv-bench/.installed ## set up .venv-bench, which has torchao to compare with

.venv/.installed: EXTRAS = test,demo
.venv-bench/.installed: EXTRAS = bench
.venv-others/.installed: EXTRAS = others
.venv-executorch/.installed: EXTRAS = test,executorch
.venv-docs/.installed: EXTRAS = docs
$(ENVIRONMENTS:=/.installed): %/.installed: $(DECLARED)
	@echo "setting up $*; this takes a minute"
	test -x $*/bin/pip || $(PYTHON) -m venv $*
	$*/bin/pip $(INSTALL_TORCH)
	$*/bin/pip install --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

.venv/.lint: .venv/.installed
	.venv/bin/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean: ## remove the environments and everything generated
	rm -rf $(ENVIRONMENTS) out .pytest_cache .ruff_cache .hypothesis lowbit.egg-info build dist
