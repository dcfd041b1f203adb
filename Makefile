# Two commands: `make run` maps the demo, `make test` checks the code. Both set up .venv first.
PYTHON ?= python3
CORES ?= all
BIN := .venv/bin
SHELL := bash
.SHELLFLAGS := -o pipefail -c
# Of what pip says: large downloads, and that packages are installed.
LARGE := awk '/Downloading.*\([0-9][0-9]+[.0-9]* MB\)|Downloading.* GB\)/ {print "  " $$2, $$3, $$4} \
  /^Installing/ {print "  installing", NF - 3, "packages"}'

.PHONY: run test test-slurm fuzz parity bench bench-gpu bench-streaming gpu-check trust wheels env \
  env-cellxgene docs vendor lint schemas lock clean

run: env
	@$(BIN)/snakemake --cores $(CORES) --quiet rules host

test: env .venv/dev.stamp
	@$(BIN)/python -m pytest -n auto --dist worksteal

# On a Slurm of its own on this machine (root, Debian); some twenty minutes.
test-slurm: env .venv/dev.stamp
	@$(BIN)/python -m pytest tests/slurm -k "$(ONLY)"

# Hundreds of altered files through the commands that read data (some minutes). SEED=N: that seed.
fuzz: env .venv/dev.stamp
	@$(BIN)/python tests/fuzz/fuzz.py $(if $(SEED),--seed $(SEED))

# Against scvi-tools 1.4.2 itself, in an environment of its own: models out and in again, then both
# trained on two atlases with three seeds (hours on a CPU). Writes tests/parity/REPORT.md.
PARITY_ATLASES = cell_lines_atlas simulated_atlas citeseq_atlas simulated_citeseq_atlas
parity: env .venv-parity/stamp
	@.venv-parity/bin/python -m pytest tests/parity
	@for atlas in $(PARITY_ATLASES); do \
	  $(BIN)/snakemake --cores $(CORES) --quiet rules --configfile tests/parity/$$atlas.yaml && \
	  .venv-parity/bin/atlasmap compare-scvi results/$$atlas --out results/$$atlas/parity \
	    || exit 1; \
	done
	@.venv-parity/bin/python tests/parity/write_report.py $(PARITY_ATLASES:%=results/%)

# atlasmap and scvi-tools in turn on the same simulated cells (three hours): docs/benchmarks.md.
# Fewer epochs where cells, labels or counts are more: what is paid once a batch of surgery then weighs
# more.
TASKS = scvi scanvi surgery_per_batch surgery_joint latent predict
SHORTER = --scvi 5 --scanvi 5 --surgery 15
bench: env .venv-parity/stamp
	@$(BIN)/python tests/bench/bench.py run --tasks $(TASKS)
	@$(BIN)/python tests/bench/bench.py run --types 10 $(SHORTER) --tasks scanvi surgery_per_batch
	@for depth in 70 1800; do \
	  $(BIN)/python tests/bench/bench.py run --depth $$depth $(SHORTER) --tasks $(TASKS) || exit 1; \
	done
	@$(BIN)/python tests/bench/bench.py run --cells 30000 --rounds 2 --scvi 10 --scanvi 10 \
	  --surgery 25 --tasks whole
	@$(BIN)/python tests/bench/bench.py run --cells 100000 --before 1 --scvi 2 --tasks scvi latent
	@$(BIN)/python tests/bench/bench.py run --cells 1000000 --rounds 1 --scvi 1 --tasks scvi
	@$(BIN)/python tests/bench/bench.py metrics
	@$(BIN)/python tests/bench/bench.py page

# On a GPU, with .venv's Python or, on a bare machine (torch 2.11 or newer, numpy, scipy, numba), its own
# and the wheels that were carried there: docs/gpu.md.
SITE := .wheels/site
OWN := $(wildcard $(BIN)/python)
ON_GPU := PYTHONPATH=src:$(SITE) $(or $(OWN),$(PYTHON))

# The tests that need CUDA, golden numbers, equality with a CPU, bits, seconds a step: within eight
# minutes. CHECK="--device forced" shows without a GPU that the check itself works.
gpu-check: $(if $(OWN),,$(SITE))
	@$(ON_GPU) tests/gpu/check.py $(CHECK)

# The tasks of `make bench`, and a whole comparison of the size and with the epochs of the lung
# atlas's tutorial, beside scvi-tools where it is installed: docs/benchmarks_gpu.md.
GPU = --device cuda --out docs/benchmarks_gpu.json
bench-gpu: $(if $(OWN),,$(SITE))
	@$(ON_GPU) tests/bench/bench.py run $(GPU) --tasks $(TASKS)
	@$(ON_GPU) tests/bench/bench.py run $(GPU) --types 10 --tasks scanvi surgery_per_batch
	@$(ON_GPU) tests/bench/bench.py run $(GPU) --cells 32472 --rounds 1 --scvi 300 \
	  --scanvi 100 --tasks whole
	@$(ON_GPU) tests/bench/bench.py page --results docs/benchmarks_gpu.json

# How far to trust a label, on real data whose truth is known (an hour): docs/trust_benchmark.md. Begun again,
# it goes on; ONLY="page" writes the page of what is there.
trust: env
	@$(BIN)/python tests/trust/run.py $(ONLY)

# What a bare GPU machine lacks, collected where there is a network (FOR: its Python), and unpacked there.
FOR = 3.12
wheels:
	@$(PYTHON) tests/gpu/wheels.py .wheels $(FOR)

$(SITE): $(wildcard .wheels/*.whl)
	@mkdir -p $@
	@$(if $^,$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target $@ $^)
	@touch $@

# Counts larger than memory, at 0.3 and 3 million simulated cells (an hour, 12 GB of disk):
# docs/larger_than_memory.md.
bench-streaming: env
	@mkdir -p results && $(BIN)/python tests/bench/streaming.py

.venv-parity/stamp: envs/lock.txt envs/lock-dev.txt envs/lock-parity.txt pyproject.toml
	@test -x .venv-parity/bin/python || $(PYTHON) -m venv .venv-parity
	@.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r envs/lock.txt -r envs/lock-dev.txt -r envs/lock-parity.txt
	@.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# The documentation, docs/_build/html: warnings are errors, links within it are checked.
docs: env .venv/docs.stamp
	@$(BIN)/python docs/generated.py
	@$(BIN)/python -m sphinx -q -W --keep-going -n -b html docs docs/_build/html
	@echo docs/_build/html/index.html

.venv/docs.stamp: .venv/env.stamp envs/lock-docs.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/lock-docs.txt
	@touch $@

# cellxgene, for the test that opens an atlas in it.
env-cellxgene: .venv-cellxgene/stamp

.venv-cellxgene/stamp: envs/lock-cellxgene.txt
	@test -x .venv-cellxgene/bin/python || $(PYTHON) -m venv .venv-cellxgene
	@.venv-cellxgene/bin/python -m pip install --quiet --disable-pip-version-check -r envs/lock-cellxgene.txt
	@touch $@

# The libraries that pages carry (needs npm), and the Cell Ontology: src/atlasmap/vendor.
vendor:
	@sh src/atlasmap/vendor/make.sh && sh src/atlasmap/vendor/cell_ontology.sh

lint: env .venv/dev.stamp
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/snakefmt --check Snakefile workflow

env: .venv/env.stamp

.venv/env.stamp: envs/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  printf "error: PYTHON_TOO_OLD\n  expected: Python 3.11 or newer\n  found:    $$($(PYTHON) --version 2>&1)\n  mend:     make PYTHON=python3.11 $(MAKECMDGOALS)\n" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  printf "error: VENV_MISSING\n  expected: Python's venv module\n  found:    $$($(PYTHON) --version) without it\n  mend:     apt install python3-venv (Debian, Ubuntu), then again\n" >&2; exit 2; }
	@echo "setting up .venv (once; a few minutes, 2.5 GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r envs/lock.txt | $(LARGE)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

.venv/dev.stamp: .venv/env.stamp envs/lock-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/lock-dev.txt
	@touch $@

schemas: env
	@$(BIN)/python workflow/schemas/make.py

# Solve the versions anew. No CUDA packages: torch brings its own where it needs them.
lock:
	@rm -rf .venv.partial && $(PYTHON) -m venv .venv.partial
	@.venv.partial/bin/python -m pip install --quiet torch==2.13.0 .
	@{ echo "# What \`make env\` installs: exact versions, no hashes, no local versions such as +cpu, so that pip"; \
	   echo "# takes whichever build of torch the machine offers. Made with \`make lock\`."; \
	   .venv.partial/bin/python -m pip freeze --exclude atlasmap | sed 's/+cpu//' \
	     | grep -viE '^(nvidia|cuda|triton)'; } > envs/lock.txt
	@.venv.partial/bin/python -m pip install --quiet '.[dev]'
	@{ echo "# What \`make test\` installs besides lock.txt."; \
	   .venv.partial/bin/python -m pip freeze --exclude atlasmap | sed 's/+cpu//' \
	     | grep -viE '^(nvidia|cuda|triton)' | grep -vxFf envs/lock.txt; } > envs/lock-dev.txt
	@.venv.partial/bin/python -m pip install --quiet '.[docs]'
	@{ echo "# What \`make docs\` installs besides lock.txt and lock-dev.txt."; \
	   .venv.partial/bin/python -m pip freeze --exclude atlasmap | sed 's/+cpu//' \
	     | grep -viE '^(nvidia|cuda|triton)' | grep -vxFf envs/lock.txt | grep -vxFf envs/lock-dev.txt; \
	   } > envs/lock-docs.txt
	@.venv.partial/bin/python -m pip install --quiet '.[parity]'
	@{ echo "# What \`make parity\` installs besides lock.txt and lock-dev.txt: scvi-tools, to compare with."; \
	   .venv.partial/bin/python -m pip freeze --exclude atlasmap | sed 's/+cpu//' \
	     | grep -viE '^(nvidia|cuda|triton)' | grep -vxFf envs/lock.txt | grep -vxFf envs/lock-dev.txt \
	     | grep -vxFf envs/lock-docs.txt; } > envs/lock-parity.txt
	@rm -rf .venv.partial

clean:
	rm -rf .venv .venv-parity .venv-cellxgene .venv.partial .snakemake docs/_build
