# One command for people and CI. `make setup` is done by every target that needs it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PACKAGES := $(foreach p,core models train eval cli,-e packages/$(p))
export PATH := $(BIN):$(PATH)
export OMP_WAIT_POLICY := PASSIVE

.PHONY: setup quickstart smol mini-v2pe test test-slow test-slurm test-slurm-faults test-slurm-quickstart slurm check \
	format docs bench clean

setup: $(VENV)/.done

# a marker written last: an interrupted installation is repeated
$(VENV)/.done: constraints.txt pyproject.toml $(wildcard packages/*/pyproject.toml)
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) found; install Python 3.11, or say make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PACKAGES) --group dev
	@touch $@

# the longest chain first, the others fill the second core; the terminal shows stages, .snakemake/log has everything
quickstart: setup
	snakemake --profile profiles/local --logger vlm --prioritize runs/quickstart/train/quickstart-convllava-stage3/model/config.json

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
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null; }

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
	for script in $(filter-out bench/harness.py,$(wildcard bench/*.py)); do python $$script || exit 1; done

# the site, in site/; strict: a dead link or an undocumented public name fails (--quiet would hide the warnings from that)
docs: setup
	NO_MKDOCS_2_WARNING=1 mkdocs build
	@echo "built site/; to read it: python -m http.server --directory site"

clean:
	rm -rf runs/quickstart runs/smol .snakemake
