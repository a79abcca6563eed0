# Every target installs what the machine lacks first, and shares one profile and one target directory, so that RocksDB
# is compiled once (docs/adr/0002-one-profile.md).
export CARGO_TARGET_DIR ?= $(HOME)/.cache/flotilla/target
# Always these names: another name for the same compiler would compile RocksDB anew.
export CC := ccache cc
export CXX := ccache c++

.PHONY: test lint build sim packages

test: packages
	cargo test --release --workspace

lint: packages
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo test --release -p flotilla-xtask

build: packages
	cargo build --release --workspace

# Simulated clusters, one from each seed (docs/simulation.md).
SEEDS ?= 1000
sim: packages
	cargo run --release -q -p flotilla-sim --bin flotilla-sim -- --seeds $(SEEDS)

packages:
	@scripts/install-packages
