#!/bin/sh
# Model checks: the order in which threads take their turns is tried through by shuttle, and for
# the smallest pieces exhaustively by loom (crates/*/src/model*).
#
# usage: ci/model-checks.sh
#
# A failure prints the schedule; the seeds are fixed, so running it again fails again.
# SHUTTLE_RANDOM_SEED tries other orders, VFIOD_MODEL_ROUNDS more or fewer of them.
# That the checks find faults is shown by `cargo run -p vfiod-faults` (CONTRIBUTING.md).
set -eu
cd "$(dirname "$0")/.."

# Not in the target directory of the ordinary builds: the flags are for every crate.
target=${CARGO_TARGET_DIR:-target}/model
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0

run() { # CHECKER CRATE FILTER
    if ! RUSTFLAGS="--cfg $1" CARGO_TARGET_DIR="$target/$1" RUST_BACKTRACE=0 \
        cargo test --quiet --locked -p "vfiod-$2" --lib "$3" >"$log" 2>&1
    then
        failed=1
        cat "$log" >&2
    fi
    grep '^test result' "$log" | sed "s/^test result/$1 $2 $3/"
}

run shuttle quota model::
run shuttle dma model::
run shuttle tasks model::
run shuttle core model::
run shuttle mdev model::
run shuttle server model::
run loom sync visited::
run loom journal model::
run loom tasks event_index::
run loom core model::

exit "$failed"
