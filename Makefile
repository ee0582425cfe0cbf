# Everything is done from here; each target installs what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo serve test contract fuzz fuzz-parsers hostile faults soak check long format bench gpu gpu-packages openapi audit sbom clean

setup: .venv/.complete

# PyTorch comes first and alone: on a machine without a GPU, whoever prefers a small CPU build
# installs it into .venv beforehand, and it is kept.
.venv/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Hone needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "Python has no venv module here: install it (Debian: python3-venv)."; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[worker,demo,trackers,dev]'
	@touch $@

demo: setup
	@$(BIN)/python examples/demo.py

serve: setup
	$(BIN)/hone serve

# On the embedded backends, then on PostgreSQL, Redis and S3 where they are installed.
test: setup
	$(BIN)/python -m tests.legs

# openai-python's own tests against a Hone server (docs/openai-compatibility.md): make contract CHECKOUT=../openai-python
contract: setup
	$(BIN)/python -m tests.contract.openai_python $(CHECKOUT)

# Thousands of requests made up from the OpenAPI document; CI makes up hundreds.
fuzz: setup
	HONE_TEST_FUZZ=100 $(BIN)/python -m pytest tests/api/test_schemathesis.py --timeout 3600

# What parses hostile bytes, for hours: TIMES as many cases as CI has, each time others.
TIMES ?= 1000
fuzz-parsers: setup
	HONE_TEST_FUZZ_PARSERS=$(TIMES) $(BIN)/python -m pytest tests/hostile -k fuzz --timeout 86400

# How long a status takes while everything hostile is sent at once; the last line is JSON.
hostile: setup
	$(BIN)/python -m benchmarks.hostile_polls

# Each fault at N instants, drawn from a seed; CI strikes once. They wait for most of their time, so several at once.
N ?= 20
AT_ONCE ?= 2
faults: setup
	$(BIN)/python -m pytest --backends=production --faults=$(N) -n $(AT_ONCE) tests/faults -k test_f

# Everything dies now and then, for ten minutes; CI does it for one.
soak: setup
	$(BIN)/python -m benchmarks.soak

# Exactly what CI runs; ends with the tests.
check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright
	$(MAKE) --no-print-directory audit
	$(MAKE) --no-print-directory test

# CI's long form: runs of minutes on models of real size.
long: setup
	$(BIN)/python -m pytest -m long

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Each prints a table and, last, one line of JSON with its ratio.
bench: setup
	$(BIN)/python -m benchmarks.memory_model
	$(BIN)/python -m benchmarks.qlora_vs_lora --dtype float32
	$(BIN)/python -m benchmarks.sft_vs_trl --preset v32k
	$(BIN)/python -m benchmarks.sft_vs_trl --preset deep --packing
	$(BIN)/python -m benchmarks.sft_vs_trl --preset deep --shared-system-prompt 200
	$(BIN)/python -m benchmarks.dpo_vs_trl --preset deep

# On a machine with a GPU: is it right, how fast is it, and beside whom (docs/performance.md).
gpu: setup
	$(BIN)/python -W default -m pytest tests/gpu -W default
	$(BIN)/python -m benchmarks.gpu

# For a GPU machine without network that has PyTorch and transformers: the rest of what `benchmarks.gpu` imports, for
# its Python and its CUDA, in a folder of 26 MB to take along (CONTRIBUTING.md).
GPU_PYTHON ?= 3.12
GPU_CUDA ?= 130
gpu-packages:
	rm -rf .gpu-packages
	$(PYTHON) -m pip install --quiet --no-compile --target .gpu-packages --no-deps --only-binary=:all: \
		--python-version $(GPU_PYTHON) --implementation cp --platform manylinux_2_28_x86_64 \
		--platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 \
		--platform manylinux2014_x86_64 --constraint constraints.txt \
		pydantic pydantic-core annotated-types typing-inspection typing-extensions peft bitsandbytes \
		trl datasets dill multiprocess xxhash
	find .gpu-packages/bitsandbytes -name 'libbitsandbytes_*.so' ! -name '*_cuda$(GPU_CUDA).so' ! -name '*_cpu.so' -delete

openapi: setup
	$(BIN)/python -m app.openapi
	$(BIN)/python -m app.settings_page

# Known vulnerabilities of the pinned packages. Says so, and is content, where nobody who knows them can be reached.
audit: setup
	-@$(MAKE) --no-print-directory .tools/.complete
	$(BIN)/python -m tests.audit

# What an environment is made of, in CycloneDX's form: make sbom ENVIRONMENT=/opt/hone/.venv
ENVIRONMENT ?= .venv
sbom: .tools/.complete
	.tools/bin/cyclonedx-py environment --output-reproducible --output-file sbom.json $(ENVIRONMENT)

# In an environment of their own: what they bring along is no part of what they look at.
.tools/.complete: supply-chain.txt
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check --requirement supply-chain.txt
	@touch $@

clean:
	rm -rf .venv .tools .hone .gpu-packages sbom.json
