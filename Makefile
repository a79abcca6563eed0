# Every target installs what the machine lacks first, and shares one profile and one target directory, so that RocksDB
# is compiled once (docs/adr/0002-one-profile.md).
export CARGO_TARGET_DIR ?= $(HOME)/.cache/flotilla/target
# Always these names: another name for the same compiler would compile RocksDB anew.
export CC := ccache cc
export CXX := ccache c++

.PHONY: demo test lint build sim bench e2e e2e-bank e2e-abandon e2e-contend e2e-power e2e-failover e2e-idle e2e-latency packages

# A cluster of NODES nodes on this machine, one of them killed under load; its last line tells what came of it.
NODES ?= 3
demo: build
	@bin/flotilla demo --nodes $(NODES)

# Every test, and the short end-to-end run: real processes, a client that knows only their addresses, three kills. The
# tests have built the programs already; `build` before them would compile much twice, with other features.
test: packages
	cargo test --release --workspace
	@$(link)
	@scripts/e2e/run load --kills 3 --records 6000 --acknowledged 6000

lint: packages
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo test --release -p flotilla-xtask

# The programs, linked into bin/.
link = mkdir -p bin && ln -sf $(CARGO_TARGET_DIR)/release/flotilla bin/flotilla && \
	ln -sf $(CARGO_TARGET_DIR)/release/flotilla-bench bin/flotilla-bench
build: packages
	cargo build --release -p flotilla-node -p flotilla-bench -p flotilla-sim
	@$(link)

# Simulated clusters, one from each seed (docs/simulation.md).
SEEDS ?= 1000
sim: packages
	cargo run --release -q -p flotilla-sim --bin flotilla-sim -- --seeds $(SEEDS)

# Load on a cluster that runs; BENCH goes to the harness, as in BENCH="kv --clients 64".
BENCH ?= --help
bench: build
	@bin/flotilla-bench $(BENCH)

# Three processes, a client that knows only their addresses, and kill -9 (scripts/e2e): records, then transactions. E2E
# goes to the script, in e2e to the first.
e2e: build
	@scripts/e2e/run load $(E2E)
	@scripts/e2e/run bank

# Transfers between accounts in interactive transactions, whose sum must never change.
e2e-bank: build
	@scripts/e2e/run bank $(E2E)

# A transaction of 100,000 locks whose client dies, and one whose node dies: how long others wait, and what is left.
e2e-abandon: build
	@scripts/e2e/run abandon $(E2E)

# Deadlocks of two and of five transactions, and one counter for 64 clients.
e2e-contend: build
	@scripts/e2e/run contend $(E2E)

# Records again, with power cuts, on file systems of its own: needs root.
e2e-power: build
	@scripts/e2e/run power $(E2E)

e2e-failover: build
	@scripts/e2e/run failover $(E2E)

e2e-idle: build
	@scripts/e2e/run idle $(E2E)

# What transactions cost with 10 ms between any two nodes (docs/performance.md).
e2e-latency: build
	@scripts/e2e/run latency $(E2E)

packages:
	@scripts/install-packages
