#!/bin/sh
# Model checks of DMA (crates/dma/src/model.rs), of the device core's lifecycle (crates/core/src/model) and of mediated devices
# (crates/mdev/src/model).
#
#   ci/model-checks.sh              every invariant holds in the orders that are tried
#   ci/model-checks.sh --mutations  also: each deliberate fault breaks the check meant for it
#
# The faults are compiled into both builds and switched on at run time, so there are two builds
# in all: one for shuttle, one for loom. A failure prints the schedule; the seeds are fixed, so
# running it again fails again. SHUTTLE_RANDOM_SEED tries other orders.
set -eu
cd "$(dirname "$0")/.."

case "${1-}" in
    '') faults=no ;;
    --mutations) faults=yes ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

# Not in the target directory of the ordinary builds: the flags are for every crate.
target=${CARGO_TARGET_DIR:-target}/model
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0

# run CHECKER CRATE FILTER SKIP...
run() {
    checker=$1 crate=$2 filter=$3
    shift 3
    if ! RUSTFLAGS="--cfg $checker" CARGO_TARGET_DIR="$target/$checker" RUST_BACKTRACE=0 \
        cargo test --quiet --locked -p "vfiod-$crate" --lib "$filter" -- --show-output "$@" \
        >"$log" 2>&1
    then
        failed=1
        cat "$log" >&2
    fi
    grep '^test result' "$log" | sed "s/^test result/$checker $crate $filter/"
}

run shuttle dma model::
run shuttle core model::scenarios
run shuttle mdev model::scenarios
run loom core model::exhaustive --skip fault_

if [ "$faults" = yes ]; then
    table=$(mktemp)
    trap 'rm -f "$log" "$table"' EXIT
    # found CHECKER CRATE FILTER: its faults into the table.
    found() {
        run "$@"
        sed -n "s/^FOUND \([A-Za-z]*\): \(.*\)/| \1 | $2 | $1 | \2 |/p" "$log" >>"$table"
    }
    found shuttle core model::faults
    found shuttle mdev model::faults
    found loom core model::exhaustive::fault_
    printf '\n| deliberate fault | crate | checker | how it was found |\n| --- | --- | --- | --- |\n'
    sort "$table"
    kinds=$(sed -n '/mutations! {$/,/^}/p' crates/core/src/mutation.rs crates/mdev/src/mutation.rs |
        grep -c '^    [A-Z][A-Za-z]*,')
    found=$(cut -d'|' -f2 "$table" | sort -u | wc -l)
    echo
    echo "$found of $kinds faults found"
    [ "$found" -eq "$kinds" ] || failed=1
fi
exit "$failed"
