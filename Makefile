# The two commands of the README are `make demo` and `make test`; both install what they need.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# More than cores: the private clusters of the tests wait more than they work.
WORKERS ?= 4

JOBS ?= 2000
SEED ?= 1
SCALE ?= 1
# EL 8 and 9 have it beside an older python3; python3 where that is 3.11 or later.
RPM_PYTHON ?= python3.11

.PHONY: forms manual pages screens demo test lint unit soak test-slurm test-ways test-slurm-versions test-publishing test-pythons acceptance bench generated clean packages test-packages deb rpm wheel test-vm

demo: packages $(VENV)/.installed
	@$(BIN)/slurm-mig demo

# pytest comes last: what continuous integration reads is its closing line.
test: lint
	@$(BIN)/pytest -q -n $(WORKERS) tests

lint: test-packages $(VENV)/.developer
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >/dev/null || $(BIN)/lint-imports --no-logo

# The part of `test` without daemons, and the part with.
unit: test-packages $(VENV)/.developer
	@$(BIN)/pytest -q -n $(WORKERS) tests --ignore tests/cluster

# SLURM_PREFIX=DIR: the Slurm below that directory instead of this machine's.
test-slurm: test-packages $(VENV)/.developer
	@$(BIN)/pytest -q -n $(WORKERS) tests/cluster

# The rooms of tests that run hooks, where Epilogs leave the teardown to another process, and where
# a helper runs all hooks, too; WAYS="later" runs one.
WAYS ?= later helper
WITH_HOOKS := $(addprefix tests/,acceptance audit cli cluster doctor gpu hooks node simulator slurm state \
  transaction whole)
test-ways: test-packages $(VENV)/.developer
	@failed=0; for way in $(WAYS); do \
	  echo "$$way:"; SLURM_MIG_WAY=$$way $(BIN)/pytest -q -n $(WORKERS) $(WITH_HOOKS) || failed=1; \
	done; exit $$failed

# What publishing does with jobs of every shape, restarts and preemption: two minutes.
test-publishing: test-packages $(VENV)/.developer
	@$(BIN)/pytest -q tests/cluster/publishing.py

# Jobs of all shapes while everything is cancelled, killed and hung; half an hour for 2 000.
# VARIANT=--trouble: while disks and slurmctld are slow, /run is full, and clocks jump.
soak: test-packages $(VENV)/.developer
	@$(BIN)/python -m tests.cluster.soak --jobs $(JOBS) --seed $(SEED) $(VARIANT)

# The same tests against each Slurm that Debian has, in roots that are made once and kept in
# SLURM_MIG_ROOTS (~/.cache/slurm-mig/roots); SUITES="trixie forky" runs some of them.
test-slurm-versions: $(VENV)/.developer
	@.ci/packages roots
	@WORKERS=$(WORKERS) $(BIN)/python .ci/matrix/releases.py $(SUITES)

# What users type, beside a second Slurm with static MIG, on each of those releases: one table.
forms: $(VENV)/.developer
	@.ci/packages roots
	@$(BIN)/python .ci/matrix/forms.py $(SUITES)

# Every driver that does otherwise than it should, on every simulated model; a table.
acceptance: $(VENV)/.developer
	@$(BIN)/python -m tests.kit.acceptance_drivers

# A booted Debian 12 and 13 in an emulator, by docs/quickstart.md: systemd, cgroup v2, power cuts; half
# an hour each. SUITES=trixie runs one, CHECKS="devices upgrade" some, BEFORE=REF is the version before.
test-vm: $(VENV)/.developer
	@.ci/packages vm
	@PYTHONPATH=. BEFORE=$(BEFORE) CHECKS="$(CHECKS)" $(BIN)/python .ci/matrix/vm.py $(SUITES)

# The tests without daemons on every Python found here, or in those roots.
test-pythons: $(VENV)/.developer
	@WORKERS=$(WORKERS) $(BIN)/python .ci/matrix/pythons.py

# What the hooks cost, as ratios: one table, and bench.json; SCALE=0.25 for smaller runs of jobs.
bench: packages $(VENV)/.developer
	@$(BIN)/python bench/figures.py --scale $(SCALE)

# Reports and the manual in a real browser, alerts by Prometheus' own checker.
pages: test-packages $(VENV)/.developer
	@.ci/packages pages
	@$(BIN)/pytest -q tests/audit/test_page.py tests/whole/test_site.py tests/whole/test_monitoring.py

# The manual as a site, in site/.
manual: $(VENV)/.developer
	@$(BIN)/mkdocs build --quiet --strict --config-file .ci/make/mkdocs.yml --site-dir ../../site

# dist/*.whl: slurm-mig, and what it needs for nodes that have no network.
wheel: $(VENV)/.developer
	@$(BIN)/pip wheel --quiet --disable-pip-version-check --no-build-isolation --wheel-dir dist .

# dist/slurm-mig_VERSION_all.deb; what it needs is taken from the environment, nothing is downloaded.
deb: packages $(VENV)/.developer
	@$(BIN)/python .ci/make/deb.py dist

# dist/slurm-mig-VERSION-1.noarch.rpm, of the same files; RPM_PYTHON is the package with the nodes' python3.
rpm: packages $(VENV)/.developer
	@.ci/packages rpm
	@$(BIN)/python .ci/make/rpm.py dist $(RPM_PYTHON)

# The samples under etc/, the table of docs/doctor.md and the manual's reference come from the code; tests compare.
generated: $(VENV)/.installed
	@$(BIN)/python -c 'from slurm_mig.fleet.fleet_file import SAMPLE; print(SAMPLE, end="")' >etc/fleet.toml
	@$(BIN)/slurm-mig generate etc/fleet.toml --out etc
	@$(BIN)/python -c 'from slurm_mig.config import sample; print(sample(), end="")' >etc/config.toml
	@sed -i '/^| code | severity/,$$d' docs/doctor.md
	@$(BIN)/python -c 'from slurm_mig.doctor import all_checks, report; \
	    print(report.manual(all_checks()), end="")' >>docs/doctor.md
	@$(BIN)/python .ci/make/reference.py docs
	@$(BIN)/python .ci/make/pictures.py docs/pictures

# docs/screens: real output, so each run's ids and times are its own. Root, for namespaces.
screens: packages $(VENV)/.installed
	@$(BIN)/python .ci/make/screens.py docs/screens

packages:
	@PYTHON=$(PYTHON) .ci/packages

test-packages: packages
	@PYTHON=$(PYTHON) .ci/packages test

$(VENV)/.installed: pyproject.toml | packages
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.developer: pyproject.toml | packages
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
