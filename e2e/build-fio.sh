#!/usr/bin/env bash
# Build a fio that needs no library, for guests: Debian's needs those of Ceph and other stores. Its source is
# Debian's; it takes half a minute, once. Running it again is a no-op.
#
# Environment: VFIOD_E2E_FIO names such a fio instead; and that of setup.sh.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ -z "${VFIOD_E2E_FIO:-}" ] || { [ -x "$VFIOD_E2E_FIO" ] || die "no program at $VFIOD_E2E_FIO"; exit 0; }
[ ! -x "$CACHE_DIR/fio" ] || exit 0
for tool in apt-get make tar; do
    command -v "$tool" >/dev/null || die "no $tool; VFIOD_E2E_FIO can name a static fio"
done
mkdir -p "$CACHE_DIR"
work=$(mktemp -d "$CACHE_DIR/fio.XXXXXX")
trap 'rm -rf "$work"' EXIT
# The source is the same on whatever the guests run.
SUITES=${VFIOD_E2E_FIO_SUITE:-bookworm}
prepare_apt "$work/apt" deb-src
log "building fio"
(
    cd "$work"
    apt-get -qq -c "$work/apt/apt.conf" source --download-only fio >&2 || die "cannot download the source of fio"
    mkdir source
    tar -C source --strip-components 1 -xf fio_*.orig.tar.?z
    cd source
    if ! { ./configure --build-static --disable-native --disable-numa --disable-rdma --disable-rados --disable-rbd \
        --disable-http --disable-gfapi --disable-libnfs --disable-pmem --disable-xnvme --disable-libzbc \
        --disable-tcmalloc --disable-dfs --disable-lex --disable-optimizations &&
        make -j "$(nproc)" EXTFLAGS=-O1 fio; } >"$work/log" 2>&1; then
        tail -n 20 "$work/log" >&2
        die "cannot build fio"
    fi
    strip fio
)
mv "$work/source/fio" "$CACHE_DIR/fio"
