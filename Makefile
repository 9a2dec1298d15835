# SPDX-License-Identifier: GPL-2.0-or-later
# `make help` prints the targets.

PREFIX ?= /usr
DESTDIR ?=
sbindir = $(DESTDIR)$(PREFIX)/sbin
docdir = $(DESTDIR)$(PREFIX)/share/doc/fence-virt
mandir = $(DESTDIR)$(PREFIX)/share/man
firewalldir = $(DESTDIR)$(PREFIX)/lib/firewalld/services
sysconfdir = $(DESTDIR)/etc
unitdir = $(DESTDIR)$(PREFIX)/lib/systemd/system
sysusersdir = $(DESTDIR)$(PREFIX)/lib/sysusers.d

HOST := x86_64-unknown-linux-gnu
CARGO_TARGET_DIR ?= $(CURDIR)/target
DIST := $(CARGO_TARGET_DIR)/dist
# Executions of each fuzz target in `make test` and in `make soak`.
FUZZ_RUNS ?= 100000
SOAK_FUZZ_RUNS ?= 10000000
# Schedules of threads that are searched in `make test` and in `make soak`.
SCHEDULES ?= 100000
SOAK_SCHEDULES ?= 10000000
# The day on manual pages and in packages: that of the last commit, so that a build can be repeated byte for byte.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)

# A registry that stumbles is asked again.
export CARGO_NET_RETRY = 10
# What is drawn in `make test` is the same every time, so that it passes or fails for what was changed. Other draws are
# those of `make soak` and of `cargo test` by hand. The search for untrue answers takes SEED=… and STEPS=… as they are.
FUZZ_SEED ?= 1
UNIT_SEED ?= 1
THREADS_SEED ?= 1
export CARGO_TARGET_DIR SOURCE_DATE_EPOCH

.PHONY: all help build man docs docs-check pictures sbom advisories deb rpm packages-check demo quick test whole check unit unit-build unit-run suites e2e compliance loads \
    suite-e2e suite-reference suite-reference-today reference-today fuzz bench soak suite-attacks-reference install install-files packages packages-build \
    packages-test clean

all: build

help: ## this list
	@sed -n 's/suite-%/suite-FOLDER/; s/^\([A-Za-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | \
	    while IFS="$$(printf '\t')" read -r name text; do printf '  make %-15s %s\n' "$$name" "$$text"; done

# The programs as they are shipped: the daemon, and the agents as one small static binary with two names.
build: packages-build ## build the programs into target/dist
	cargo build --locked --release -p fence-virtd
	RUSTFLAGS="$$RUSTFLAGS -C target-feature=+crt-static" \
	    cargo build --locked --profile agent --target $(HOST) -p fence-xvm
	mkdir -p $(DIST)
	install -m 755 $(CARGO_TARGET_DIR)/release/fence_virtd $(DIST)/fence_virtd
	install -m 755 $(CARGO_TARGET_DIR)/$(HOST)/agent/fence_xvm $(DIST)/fence_xvm
	ln -sf fence_xvm $(DIST)/fence_virt
	scripts/unit-template > $(DIST)/fence_virtd@.service

# Bills of materials (CycloneDX) of the programs.
sbom: ## bills of materials into target/dist
	mkdir -p $(DIST)
	scripts/sbom fence-virtd $(HOST) $(DIST)/fence-virtd.cdx.json
	scripts/sbom fence-xvm $(HOST) $(DIST)/fence-xvm.cdx.json

# Known holes in what is linked in; fetches the database of advisories.
advisories: ## ask the database of advisories about what is linked in (needs the network)
	"$$(scripts/install-tool cargo-deny 0.20.2)" check advisories

man: packages-build ## manual pages into target/dist/man
	scripts/man-pages $(DIST)/man

# The book; it works from the disk, and loads nothing from elsewhere.
docs: packages-build ## the pages as a book with search, into target/book
	scripts/book "$$(scripts/install-tool mdbook 0.5.4 search)" $(CARGO_TARGET_DIR)/book

# Links and anchors of all pages, a shelf for each page, files that the tables about the sources name, pictures that are up to
# date. Needs nothing but Python.
docs-check: ## links, shelves and pictures of the pages
	scripts/check-docs --sources
	scripts/pictures --check

# The pictures are in the repository, so that nobody needs graphviz to read them; `make check` says when one is out of date.
pictures: ## the pictures of docs/pictures, from their sources
	scripts/install-packages scripts/packages-pictures.txt
	scripts/pictures

demo: build ## install what is needed, build, fence a domain for real, and show it
	scripts/install-packages tests/packages-demo.txt
	scripts/contained --strict scripts/demo $(DIST)

# What a change to one part breaks first: formatting, lints, the crates without I/O, and debug builds of the programs against
# cases that need no hypervisor. Two minutes on two cores once it is built.
QUICK_CRATES = $(notdir $(wildcard $(addprefix crates/,fence-core fence-wire fence-config fence-cli fence-net)))
QUICK_CASES ?= compliance/test_actions.py
quick: packages-test ## in two minutes: format, lints, unit tests of pure crates, every action
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	scripts/check-sources
	PROPTEST_RNG_SEED=$(UNIT_SEED) cargo test --locked --quiet $(addprefix -p ,$(QUICK_CRATES))
	cargo build --locked -p fence-virtd -p fence-xvm
	ln -sf fence_xvm $(CARGO_TARGET_DIR)/debug/fence_virt
	SIDE=ours OURS_DIR=$(CARGO_TARGET_DIR)/debug scripts/suite $(QUICK_CASES)

# The whole takes 35 minutes on two cores. It runs in namespaces of its own, and its last step compares processes, network
# namespaces, mounts and files outside of the checkout with those at its start: what is left fails it, by name.
test: packages ## install what is needed, and run everything
	scripts/contained --strict $(MAKE) whole

whole:
	$(MAKE) check unit-build build
	scripts/check-install
	$(MAKE) deb rpm
	scripts/failures $(MAKE) suites LANES=8 BESIDE="unit-run fuzz"

# Everything that talks to the programs from outside. Most of it waits most of its time (the C programs sleep, guests boot), so
# several suites run beside each other; each has its own namespaces. What one printed comes when it is over. Fuzzing takes the time
# that is left. One that fails does not keep the others from running.
LANES ?= 3
# What has the C programs of Debian sid waits for them. Where all suites run they are there before: who waits for something that is
# under way begins last.
REFERENCE_TODAY ?= reference-today
suites: packages-test reference-today ## every suite of tests/ against target/dist
	$(MAKE) --keep-going -j$(LANES) --output-sync=target REFERENCE_TODAY= $(BESIDE) $(SUITES)

# The long ones first.
SUITES = suite-cpg-3 suite-elsewhere-1 suite-agents-1 suite-elsewhere-2 suite-agents-2 suite-e2e suite-fence_races suite-cpg-2 suite-guests suite-cpg-1 \
    suite-field suite-compliance suite-truth_search suite-diagnose suite-pacemaker suite-transports suite-sandbox suite-cts suite-attacks \
    suite-keys suite-reference suite-reference-today suite-observability suite-several_hosts suite-attacks-reference suite-contained suite-configure \
    suite-packages suite-manual suite-checks suite-islands suite-bench

check: packages-build ## format, lints, and the checks in scripts/
	cargo fmt --all --check
	cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
	cargo fmt --manifest-path tests/threads/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	for features in "" libvirt; do \
	    cargo clippy --locked -p fence-virtd --no-default-features --features "$$features" -- -D warnings || exit 1; \
	done
	RUSTDOCFLAGS="-D rustdoc::broken_intra_doc_links" \
	    cargo doc --locked --workspace --no-deps --document-private-items
	scripts/check-dependencies
	scripts/check-modules
	scripts/check-names
	scripts/check-sources
	scripts/check-supply
	$(MAKE) --no-print-directory docs-check
	scripts/install-packages scripts/packages-check.txt
	scripts/check-unit
	scripts/check-man

# What the tests of the crates, and the suites that need a debug build, are built of.
unit-build: packages-test
	cargo test --locked --workspace --no-run
	cargo build --locked -p fence-virtd

# Threads that wait for each other would wait for ever: there is a limit to it. Most tests of the daemon wait most of their time, so
# more of them run at once than there are processors.
unit: unit-build ## the tests of the crates
	$(MAKE) unit-run

# Without prerequisites, so that it begins at once beside the suites. With the features of the whole workspace each time: another
# choice of them is another build.
unit-run:
	PROPTEST_RNG_SEED=$(UNIT_SEED) RUST_TEST_THREADS=6 \
	    scripts/contained --strict timeout -k 10 900 cargo test --locked --workspace --no-fail-fast
	scripts/contained --strict timeout -k 10 300 cargo test --locked --workspace --test real_libvirtd -- --ignored
	scripts/contained --strict timeout -k 10 300 cargo test --locked --workspace --test real_corosync -- --ignored
	scripts/contained --strict timeout -k 10 300 cargo test --locked --workspace --bin fence_virtd -- --ignored cluster::
	THREADS_SEED=$(THREADS_SEED) nice -n 10 timeout -k 10 900 tests/threads/run $(SCHEDULES)

# Our daemon with both agents; the C daemon with both is a part of `make soak`.
suite-e2e: E2E_PAIRS ?= ours-ours,reference-ours
suite-e2e:
	E2E_PAIRS=$(E2E_PAIRS) OURS_DIR=$(DIST) scripts/suite e2e

# The same choice for real guests, which are the most work for the processors.
suite-guests: GUESTS_PAIRS ?= ours-ours,reference-ours
suite-guests:
	GUESTS_PAIRS=$(GUESTS_PAIRS) SIDE=ours OURS_DIR=$(DIST) scripts/suite guests

# The same cases against the C programs: what the suite expects is what these do.
suite-reference:
	SIDE=reference scripts/suite vectors compliance

# The same cases against the C programs of Debian sid.
suite-reference-today: $(REFERENCE_TODAY) ## the compliance suite against the C programs of Debian sid
	SIDE=reference REFERENCE=today scripts/suite compliance

# Suites that have the C programs of Debian sid beside those of this machine.
suite-compliance suite-field suite-several_hosts: $(REFERENCE_TODAY)

# What each attack gets at the C programs, and that it gets nothing at ours.
suite-attacks-reference:
	SIDE=reference OURS_DIR=$(DIST) scripts/suite attacks

# The longest ones, in parts that run beside each other: each has hosts of its own, and waits most of its time. What is in no other
# part is in the last.
files_of = $(patsubst tests/%,%,$(wildcard tests/$(1)/test_*.py))
FILES_cpg-1 = $(patsubst %,cpg/test_%.py,moves survivor agents gone)
FILES_cpg-2 = $(patsubst %,cpg/test_%.py,lost recovery truth routing)
FILES_cpg-3 = $(filter-out $(FILES_cpg-1) $(FILES_cpg-2),$(call files_of,cpg))
FILES_agents-1 = $(patsubst %,agents/test_%.py,bad_agent survivor evidence truth several)
FILES_agents-2 = $(filter-out $(FILES_agents-1),$(call files_of,agents))
FILES_elsewhere-1 = $(patsubst %,elsewhere/test_%.py,migrations rows costs half_reboots names)
FILES_elsewhere-2 = $(filter-out $(FILES_elsewhere-1),$(call files_of,elsewhere))

# The ends of a daemon in the middle of its work need the fault points of a debug build, beside the programs as they are shipped.
WITH_FAULTS = fence_races cpg cpg-1 cpg-2 cpg-3 elsewhere elsewhere-1 elsewhere-2
$(addprefix suite-,$(WITH_FAULTS)): suite-%:
	cargo build --locked -p fence-virtd
	SIDE=ours OURS_DIR=$(DIST) scripts/suite $(or $(FILES_$*),$*)

suite-%: ## one suite, as suite-transports
	SIDE=ours OURS_DIR=$(DIST) scripts/suite $(or $(FILES_$*),$*)

compliance: suite-reference suite-reference-today suite-compliance

e2e: suite-e2e

fuzz: ## every decoder against hostile input
	FUZZ_SEED=$(FUZZ_SEED) nice -n 10 tests/fuzz/run $(FUZZ_RUNS)

bench: packages-test build ## the C programs and ours side by side; JSON in target/bench
	OURS_DIR=$(DIST) scripts/contained --strict /usr/bin/python3 tests/bench/bench.py

loads: packages-test build ## what each load costs the fences of others: the table of docs/limits.md
	OURS_DIR=$(DIST) scripts/contained --strict /usr/bin/python3 tests/islands/table.py

deb: build man sbom ## Debian packages into target/packages
	scripts/install-packages packaging/packages-deb.txt
	scripts/build-deb $(CARGO_TARGET_DIR)/packages

rpm: build man sbom ## RPMs into target/packages
	scripts/install-packages packaging/packages-rpm.txt
	scripts/build-rpm $(CARGO_TARGET_DIR)/packages

# The Debian packages installed in a clean Debian 12, used there, and put in place of the C packages.
packages-check: packages-test deb rpm ## the Debian packages in a clean Debian (needs the package mirror)
	scripts/install-packages packaging/packages-check.txt
	scripts/again scripts/clean-root $(CARGO_TARGET_DIR)/packages/root
	$(MAKE) suite-packages

# Hostile traffic beside honest requests for SOAK_SECONDS; the report is in target/soak. Rounds of the fence races and
# cases of the arbiter's properties.
SOAK_SECONDS ?= 3600
SOAK_ROUNDS ?= 200
SOAK_CASES ?= 100000
# Minutes in which untrue answers are searched for, each search with a new seed.
SOAK_TRUTH_MINUTES ?= 120

soak: packages-test build packages-check ## what takes hours: long fuzzing and endurance runs
	E2E_PAIRS=ours-reference,reference-reference OURS_DIR=$(DIST) scripts/suite e2e
	GUESTS_PAIRS=ours-reference,reference-reference SIDE=ours OURS_DIR=$(DIST) scripts/suite guests
	ROUNDS=$(SOAK_ROUNDS) SIDE=ours OURS_DIR=$(DIST) scripts/suite fence_races
	ROUNDS=$(SOAK_ROUNDS) LIMIT=7200 SIDE=ours OURS_DIR=$(DIST) scripts/suite cpg
	ROUNDS=$(SOAK_ROUNDS) LIMIT=7200 SIDE=ours OURS_DIR=$(DIST) scripts/suite elsewhere
	WIDE=1 SIDE=ours OURS_DIR=$(DIST) scripts/suite pacemaker
	WIDE=1 SIDE=ours OURS_DIR=$(DIST) scripts/suite islands
	SOAK_SECONDS=$(SOAK_SECONDS) SIDE=ours OURS_DIR=$(DIST) scripts/suite attacks/test_all_at_once.py
	WIDE=1 LIMIT=14400 SIDE=ours OURS_DIR=$(DIST) scripts/suite cts
	MINUTES=$(SOAK_TRUTH_MINUTES) LIMIT=$$(( 60 * $(SOAK_TRUTH_MINUTES) + 1800 )) SIDE=ours OURS_DIR=$(DIST) \
	    scripts/suite truth_search
	PROPTEST_CASES=$(SOAK_CASES) cargo test --locked --release -p fence-core
	THREADS_SEED=0 tests/threads/run $(SOAK_SCHEDULES)
	FUZZ_SEED=0 tests/fuzz/run $(SOAK_FUZZ_RUNS)
	OURS_DIR=$(DIST) scripts/contained --strict /usr/bin/python3 tests/attacks/soak.py --seconds $(SOAK_SECONDS) --report $(CARGO_TARGET_DIR)/soak

install: build man sbom ## DESTDIR=… PREFIX=… put the programs and their files in place
	$(MAKE) install-files

# What was built goes into place; nothing is built. Packages are made of this.
install-files:
	install -d $(sbindir) $(docdir)
	install -m 755 $(DIST)/fence_virtd $(DIST)/fence_xvm $(sbindir)/
	ln -sf fence_xvm $(sbindir)/fence_virt
	install -d $(mandir)/man5 $(mandir)/man8
	install -m 644 $(DIST)/man/man5/* $(mandir)/man5/
	install -m 644 $(DIST)/man/man8/* $(mandir)/man8/
	install -m 644 LICENSE $(DIST)/*.cdx.json $(docdir)/
	scripts/install-docs $(docdir)
	install -d $(unitdir) $(sysusersdir) $(firewalldir) $(DESTDIR)/usr/share/fence-virt
	install -m 755 packaging/adapt-host $(DESTDIR)/usr/share/fence-virt/
	install -d $(DESTDIR)/usr/lib/systemd/system-generators
	install -m 755 packaging/fence_virtd-generator $(DESTDIR)/usr/lib/systemd/system-generators/
	install -m 644 systemd/fence_virtd.service $(unitdir)/
	install -m 644 $(DIST)/fence_virtd@.service $(unitdir)/
	install -m 644 systemd/fence_virt.sysusers.conf $(sysusersdir)/fence_virt.conf
	install -m 644 packaging/firewalld/*.xml $(firewalldir)/
	install -d $(sysconfdir)/logrotate.d
	install -m 644 packaging/logrotate/fence_virtd $(sysconfdir)/logrotate.d/
	# A configuration that is there already is the administrator's.
	test -e $(sysconfdir)/fence_virt.conf || install -m 600 etc/fence_virt.conf $(sysconfdir)/fence_virt.conf

packages-build:
	scripts/install-packages scripts/packages-build.txt

# Every list that there is, and what is fetched beside them: nothing can be installed while the whole runs.
packages: packages-test reference-today ## install what any target needs
	for list in scripts/packages-*.txt packaging/packages-*.txt tests/packages*.txt; do \
	    scripts/install-packages $$list || exit 1; \
	done

# What comes from elsewhere comes first; all that follows finds it here.
packages-test: packages-build
	scripts/install-packages tests/packages.txt
	for list in tests/*/requirements.txt; do scripts/install-venv $$list || exit 1; done
	scripts/again tests/cts/prepare $(CARGO_TARGET_DIR)/cts
	scripts/again cargo fetch --locked --quiet

# The C programs as Debian sid has them, in target/; nothing of the system changes. Needs the package mirror, once.
reference-today: packages-test ## fetch the C programs of Debian sid
	scripts/reference-today $(CARGO_TARGET_DIR)/reference-today

clean: ## remove target/
	cargo clean
