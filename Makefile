# All commands of the project: `make help`. Needs Debian 12 or newer, Python 3.11, git, and root or sudo.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
BIN := .venv/bin
INVENTORY := -i inventories/dev -i .provision/sandbox/inventory.yml
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Ansible ignores ansible.cfg in a directory that every user may write to, such as a shared folder, unless it is named.
export ANSIBLE_CONFIG ?= $(CURDIR)/ansible.cfg

# $(call stage,title,commands): prints the title, runs the commands, prints the duration.
stage = @printf '==> %s\n' '$(1)' >&2; start=$$SECONDS; $(2); printf '    took %s s\n' "$$((SECONDS - start))" >&2
# $(call packages,names): installs missing packages.
packages = missing=(); for name in $(1); do dpkg-query -Wf '$${Status}' $$name 2>/dev/null | grep -q '^install ok' || missing+=($$name); done; \
	if [ $${\#missing[@]} -gt 0 ]; then $(SUDO) apt-get -q update >&2; \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "$${missing[@]}" >&2; fi

# $(call pip,extra): installs this package with the extra of pyproject.toml into .venv.
pip = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'

# Prevents packages from starting services: tests start their own servers on their own ports.
quiet_services = [ -e /usr/sbin/policy-rc.d ] || { trap '$(SUDO) rm -f /usr/sbin/policy-rc.d' EXIT; \
	printf '\#!/bin/sh\nexit 101\n' | $(SUDO) install -m 755 /dev/stdin /usr/sbin/policy-rc.d; }

# The database of migrate-up, migrate-down and status: DATABASE_URL, or the host of `make up`.
DATABASE = url=$${DATABASE_URL:-$$(provision sandbox url)} && [ -n "$$url" ]
# The application's connection to the host of `make up`.
CONNECT = provision connect $(INVENTORY) --password $(if $(HOST),--limit $(HOST))

# Hosts of `make up`; three are a cluster (docs/cluster.md).
NODES ?= 1
NODE_NAMES = $(foreach number,$(wordlist 1,$(NODES),1 2 3 4 5 6 7 8 9),db$(number))
CLUSTER = $(if $(filter-out 1,$(NODES)),-e cluster_enabled=true -e tls_enabled=true)

.PHONY: help
help: ## List every target
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

## The main job

.PHONY: up
up: .venv/.ready ## Create a disposable database host on this machine and converge it; NODES=3 makes a cluster
	$(call stage,install the psql client,$(call packages,postgresql-client))
	$(call stage,create a host,provision sandbox up $(NODE_NAMES))
	$(call stage,converge the host,ansible-playbook site.yml $(INVENTORY) $(CLUSTER))
	@printf '\nApplications: make env. Sessions: make psql-app, make psql.\n'

.PHONY: setup
setup: .venv/.ready ## Set up the tools in .venv, without those of the tests

.PHONY: down
down: ## Remove everything that `make up` created: containers, network, image, keys, .venv
	@if [ -x $(BIN)/provision ]; then provision sandbox down --all; \
	elif [ -d .provision/sandbox ]; then echo 'removing the hosts needs .venv: run make setup, then make down' >&2; exit 1; fi
	rm -rf .venv .provision provision.egg-info

.PHONY: psql
psql: .venv/.ready ## Open a psql session as minion
	@url=$$(provision sandbox url) && psql "$$url"

.PHONY: psql-app
psql-app: .venv/.ready ## Open a psql session as minion_app through the pooler (several hosts: HOST=db1)
	@url=$$($(CONNECT) --show url) && psql "$$url"

.PHONY: env
env: .venv/.ready ## Print the .env file of an application (several hosts: HOST=db1)
	@$(CONNECT) --show env

.PHONY: status
status: .venv/.ready ## Show the hosts and the migration status
	@provision sandbox list
	@$(DATABASE) && { provision migrate status --path migrations --database "$$url" || [ $$? -eq 3 ]; }

.PHONY: migrate-up
migrate-up: .venv/.ready ## Apply all pending migrations (DATABASE_URL, or the host of `make up`)
	@$(DATABASE) && provision migrate up --path migrations --database "$$url"

.PHONY: migrate-down
migrate-down: .venv/.ready ## Roll back the last migration and drop its data (prod: YES_DESTROY=database)
	@$(DATABASE) && provision migrate down 1 --path migrations --database "$$url" $(if $(YES_DESTROY),--yes-destroy $(YES_DESTROY)) $(if $(WITHOUT_BACKUP),--without-backup)

.PHONY: collection
collection: .venv/.ready ## Build the Ansible collection into .provision/collection, offline (docs/use-the-roles-alone.md)
	@ansible-galaxy collection build --force --output-path .provision/collection

## Tests

# Three workers on two cores, because hosts and servers are idle half of the time. tests/conftest.py groups tests that
# share hosts.
LANES := -n 3 --dist loadscope --no-loadscope-reorder

.PHONY: test
test: test-setup lint ## Run all tests (about 30 minutes on 2 cores)
	$(call stage,run the tests,$(BIN)/pytest $(LANES))

.PHONY: test-fast
test-fast: test-setup lint ## Run all tests that need no hosts (about 10 minutes)
	$(call stage,run the fast tests,$(BIN)/pytest $(LANES) --ignore tests/system)

.PHONY: test-setup
test-setup: .venv/.tests
	$(call stage,install packages for the tests,$(quiet_services); $(call packages,postgresql-common); \
	  compgen -G "/etc/postgresql/*/*" >/dev/null || echo "create_main_cluster = false" | $(SUDO) tee /etc/postgresql-common/createcluster.d/50-provision-tests.conf >/dev/null; \
	  $(call packages,$$(grep -vhE '^(#|$$)' tests/apt.txt)); \
	  command -v npm >/dev/null || { $(call packages,npm); })

.PHONY: lint
lint: .venv/.tests ## Check style and types
	$(call stage,lint,ruff check .; ruff format --check .; mypy; bandit -q -c pyproject.toml -r provision plugins; yamllint --strict .; \
	  sqlfluff lint --disable-progress-bar migrations; ansible-lint --offline -q)

.PHONY: test-faults
test-faults: test-setup ## Run long fault-injection tests, before a release
	$(call stage,run the fault-injection tests,$(BIN)/pytest -m faults)

.PHONY: test-upgrade-kills
test-upgrade-kills: test-setup ## Kill upgrades between local servers, ROUNDS=10 of each method (10 minutes); SEED repeats a run
	$(call stage,kill upgrades,UPGRADE_KILL_ROUNDS=$(or $(ROUNDS),10) UPGRADE_KILL_SEED=$(SEED) \
	  $(BIN)/pytest -q -s -m faults tests/integration/test_upgrade_kills.py)

.PHONY: test-pg14
test-pg14: .venv/.tests ## Test the default versions, PostgreSQL 14 and pgvector 0.5.1, from a mirror (docs/test-pg14.md)
	$(BIN)/pytest tests/pg14

.PHONY: test-majors
test-majors: .venv/.tests ## Test upgrades from 14 to 17 and from 17 to 18 on hosts (docs/test-pg14.md; 20 minutes)
	$(BIN)/pytest -rP tests/majors

.PHONY: test-fleet
test-fleet: .venv/.tests ## Test a fleet of five hosts with Citus (docs/fleet.md; needs a package source of Citus)
	$(BIN)/pytest -rP tests/fleet

# Packages for a libvirt machine and for building its box. MINION_OS selects the release.
VAGRANT_LIBVIRT := vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils dnsmasq-base \
	mmdebstrap extlinux fdisk syslinux-common openssh-client postgresql-client

.PHONY: test-vagrant-libvirt
test-vagrant-libvirt: .venv/.tests ## Test Vagrant with libvirt on an emulated CPU and a local box (docs/vagrant.md; half an hour)
	$(call stage,install packages for virtual machines,$(quiet_services); $(call packages,$(VAGRANT_LIBVIRT)))
	$(SUDO) $(BIN)/pytest tests/vagrant_libvirt

.PHONY: test-matrix
test-matrix: .venv/.tests ## Converge dev and prod on each system with each available major; writes docs/tested.json
	$(BIN)/python -m tests.matrix
	@$(MAKE) docs

## Benchmarks: they print ratios and assert nothing

.PHONY: bench-provision
bench-provision: .venv/.tests ## Compare first and second site.yml with a bare apt-get install
	$(BIN)/python -m benchmarks.provisioning

.PHONY: bench-migrate
bench-migrate: test-setup ## Compare 300 small migrations with psql and dbmate
	$(BIN)/python -m benchmarks.migrate

.PHONY: bench-schema
bench-schema: test-setup ## Measure retention statements and views before and after each migration
	$(BIN)/python -m benchmarks.schema

.PHONY: bench-db
bench-db: test-setup ## Compare prod with stock, the recommended settings and other systems (reserves huge pages; half an hour)
	$(BIN)/python -m benchmarks.database --report .provision/bench

.PHONY: bench-restart
bench-restart: test-setup ## Measure searches after a restart and a failover with and without autoprewarm (2 GB index; 40 minutes)
	$(BIN)/python -m benchmarks.restart

.PHONY: bench-reads
bench-reads: test-setup ## Compare the values of io_method of PostgreSQL 18 on reads from disk (10 minutes)
	$(BIN)/python -m benchmarks.reads

.PHONY: bench-growth
bench-growth: test-setup ## Measure how costs grow with vectors, agents, rows, migrations, GB, hosts; prints a table, writes a plot (hours)
	$(BIN)/python -m benchmarks.growth --into .provision/bench

.PHONY: bench-backup
bench-backup: .venv/.tests ## Compare pgBackRest with pg_basebackup and pg_dump on 2 GB with vectors
	$(BIN)/python -m benchmarks.backup

.PHONY: bench-pool
bench-pool: .venv/.tests ## Compare 500 clients through PgBouncer with 500 direct connections, with TLS (6 minutes)
	$(BIN)/python -m benchmarks.pool

.PHONY: bench-failover
bench-failover: test-setup ## Compare gaps and lost rows of failovers with those of Patroni's defaults (12 minutes)
	$(BIN)/python -m benchmarks.failover

.PHONY: bench-upgrade
bench-upgrade: .venv/.tests ## Measure waits during a major upgrade by each method, beside a dump and restore, on 1 GB with vectors (an hour)
	$(BIN)/python -m benchmarks.upgrade

.PHONY: bench-tenants
bench-tenants: test-setup ## Measure migrations, checks, maintenance, backups and memory of N tenants (N=100)
	$(BIN)/python -m benchmarks.tenants $(or $(N),100)

.PHONY: bench-audit
bench-audit: .venv/.tests ## Compare audits of five hosts, of one host, and site.yml --check (dev sandboxes)
	$(BIN)/python -m benchmarks.audit

## Set-up

# What converging and operating hosts needs.
.venv/.ready: pyproject.toml constraints.txt
	@[ -L collections/ansible_collections/minion/provision ] || { printf '%s\n' \
	  'this clone has no symbolic links, which the collection and the templates of the roles need' \
	  'run: git clone -c core.symlinks=true URL, on a file system that has them (in WSL: below your home, not below /mnt)' >&2; exit 1; }
	$(call stage,set up the virtual environment, \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required; set PYTHON=python3.x")'; \
	  $(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call packages,python3-venv); }; \
	  $(PYTHON) -m venv .venv; $(call pip,plan))
	@touch $@

# The rest: tests, lint, benchmarks, the site. Five times the size, and minutes where the network is slow.
.venv/.tests: .venv/.ready
	$(call stage,install the packages of the tests,$(call pip,test))
	@touch $@

.PHONY: site
site: .venv/.tests ## Build the documentation site into .provision/site, offline, with search
	$(BIN)/python -m tests.contract.site

.PHONY: docs
docs: .venv/.tests ## Generate tables and pictures of README.md, roles/*/README.md and docs/
	$(BIN)/python -m tests.contract.repository
	$(BIN)/python -m tests.contract.support
	$(BIN)/python -m tests.contract.sizes
	$(BIN)/python -m tests.contract.pictures
	$(BIN)/python -m tests.contract.manuals
