# One command for people and CI. `make setup` is done by every target that needs it.
# the newest suitable Python that runs; `make setup PYTHON=/path/to/python` names another
PYTHONS := python3.14 python3.13 python3.12 python3.11 python3
PYTHON ?= $(firstword $(foreach p,$(PYTHONS),$(shell $(p) -c "import sys, venv; sys.version_info >= (3, 11) or sys.exit(1)" 2>/dev/null && echo $(p))))
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
DIST := dist
LAYERS := packages/core packages/models packages/train packages/eval
PACKAGES := $(LAYERS:%=-e %) -e "packages/cli[train,eval,serve,workflow,gguf,tensorboard]"
export PATH := $(BIN):$(PATH)
export OMP_WAIT_POLICY := PASSIVE

.PHONY: setup quickstart smol mini-v2pe test test-slow test-gpu test-slurm test-slurm-faults test-slurm-quickstart slurm check \
	format docs dist bench bench-peers full-size clean

setup: $(VENV)/.done

# a marker written last: an interrupted installation is repeated; an environment that works keeps its Python
$(VENV)/.done: constraints.txt pyproject.toml $(wildcard packages/*/pyproject.toml)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { python="$(PYTHON)"; command -v "$$python" >/dev/null || \
	{ echo "error: no Python 3.11 or newer found; install one, or say make setup PYTHON=/path/to/python3.13"; exit 1; }; \
	echo "$$python -m venv $(VENV)"; "$$python" -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PACKAGES) --group dev
	@touch $@

# the longest chain first, the others fill the second core (the solver finds no answer to that wish, and says so); the terminal
# shows stages, .snakemake/log has everything
quickstart: setup
	snakemake --profile profiles/local --logger vlm --scheduler greedy --prioritize runs/quickstart/train/quickstart-convllava-stage3/model/config.json

smol: setup
	snakemake --profile profiles/local --logger vlm --configfile workflows/config/smol.yaml

# the V2PE study, about an hour on two cores; its tables and plots go to docs/results
mini-v2pe: setup
	snakemake --profile profiles/local --logger vlm --configfile workflows/config/mini-v2pe.yaml
	python workflows/scripts/mini_v2pe.py runs/mini-v2pe docs/results

# both cores: a worker takes whole files
test: setup
	pytest -n 2 --dist loadfile

test-slow: setup
	pytest -m slow

# the list of tests/rehearsal on a GPU; skips, with the reason, where there is none
test-gpu: setup
	pytest -rs tests/rehearsal --device cuda

# the debug DAG on a Slurm of our own, on loopback ports in a temporary folder, taken down at the end
test-slurm: setup slurm
	pytest -m slow tests/workflow/test_slurm.py

# prints the jobs of each fault, and how many were done again
test-slurm-faults: setup slurm
	pytest -m slow -rP --durations=0 tests/workflow/test_slurm_faults.py

# the quickstart by both profiles, half an hour; needs the package index
test-slurm-quickstart: setup slurm
	pytest -m slow tests/workflow/test_slurm_quickstart.py

slurm:
	@for name in slurmctld slurmd munged sbatch; do command -v $$name; done | wc -l | grep -q 4 || \
	{ apt-get update -qq && apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null; }

check: setup
	ruff format --check .
	ruff check .
	mypy --strict packages/*/src
	snakefmt --check Snakefile workflows/rules
	vlm recipe check

format: setup
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflows/rules

bench: setup
	for script in $(filter-out bench/harness.py bench/full_size.py bench/peer%,$(wildcard bench/*.py)); do python $$script || exit 1; done

# against transformers, lmms-eval, HF Trainer and TRL themselves; the first run installs what is missing below .peers
bench-peers: setup
	for script in $(wildcard bench/peer_*.py); do OMP_NUM_THREADS=1 python $$script || exit 1; done
	python bench/peers_table.py

# the published models at their published size, random weights: 24 GiB of memory, 50 GB of disk, an hour on two cores
full-size: setup
	python bench/full_size.py --place full-size

# the site, in site/; strict: a dead link or an undocumented public name fails (--quiet would hide the warnings from that)
docs: setup
	NO_MKDOCS_2_WARNING=1 mkdocs build
	@echo "built site/; to read it: python -m http.server --directory site"

# the wheels of the five packages, in dist/; docs/install.md says what to do with them
dist: setup
	rm -rf $(DIST)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(DIST) $(LAYERS) packages/cli
	@ls $(DIST)/*.whl

# what the quickstart and `make smol` trained and the starts that they made, which cost seconds; downloads and data stay
clean:
	rm -rf runs/quickstart runs/smol .snakemake pretrained/quickstart-tokenizer
	rm -rf $(foreach system,convllava v2pe internvl-chat-v1-2,pretrained/quickstart-$(system) pretrained/smol-$(system))
