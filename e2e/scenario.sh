# Helpers for scenarios. Sourced by each, never run alone.
# shellcheck shell=bash
# A scenario serves devices with vfiod, boots guests that use them, and checks both sides.
# The first command that fails ends it as failed; whatever it started is ended with it.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

: "${VFIOD:?the vfiod program under test}"
WORK=$(mktemp -d)
export WORK
EDU_TOOL=$CACHE_DIR/guest-edu
SERVER_PID=''
# What a scenario must undo before its server can end.
UNDO=(true)
# In front of what each guest runs.
GUEST_LIB=$HARNESS_DIR/guest/lib.sh

finish() {
    local status=$?
    trap - EXIT
    "${UNDO[@]}" 2>/dev/null || true
    jobs -p | xargs -r kill 2>/dev/null || true
    # Guests in the background are children of jobs, which end without them.
    cat "$WORK"/*.guest 2>/dev/null | xargs -r kill 2>/dev/null || true
    [ -z "$SERVER_PID" ] || kill -9 "$SERVER_PID" 2>/dev/null || true
    if [ "$status" != 0 ] && [ -r "$WORK/server.log" ]; then
        echo "--- the server's log"
        tail -n 60 "$WORK/server.log"
    fi
    # A view of devices that the killed server left.
    local mount
    while read -r _ mount _; do
        [[ $mount != "$WORK"/* ]] || umount -l "$mount" || fusermount3 -u -z "$mount" || true
    done </proc/mounts
    rm -rf "$WORK"
    exit "$status"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

# VFIOD_PATIENCE is how many times longer everything may take, on a machine that is busy or emulates it.
PATIENCE=$((120 * ${VFIOD_PATIENCE:-1}))
# What a guest has: it boots and does all of its work. What it waits for itself has less (guest/lib.sh), so that it
# says what it was.
GUEST_PATIENCE=$((600 * ${VFIOD_PATIENCE:-1}))

# wait_for WHAT COMMAND...: until the command succeeds, PATIENCE seconds at most, and while there is a server.
wait_for() {
    local what=$1 end=$((SECONDS + PATIENCE)) server=$SERVER_PID ended=''
    shift
    while [ "$SECONDS" -lt "$end" ] && [ -z "$ended" ]; do
        # Looked at first: what has ended has done all that it does.
        [ -z "$server" ] || kill -0 "$server" 2>/dev/null || ended=yes
        if "$@" >/dev/null 2>&1; then return 0; fi
        [ -n "$ended" ] || sleep 0.1
    done
    if [ -n "$ended" ]; then echo "the server ended before this: $what"; else echo "waited $PATIENCE seconds in vain: $what"; fi
    return 1
}

# Whom root lets serve: a user that owns nothing but $WORK, unless a scenario says SERVER_USER=root.
SERVER_USER=65534

# server_command: sets COMMAND to how vfiod is started, as the user that is to serve.
server_command() {
    COMMAND=("$VFIOD")
    [ "$(id -u)" = 0 ] && [ "$SERVER_USER" != root ] || return 0
    local as=(setpriv --reuid "$SERVER_USER" --regid "$SERVER_USER" --clear-groups)
    chown -R "$SERVER_USER:$SERVER_USER" "$WORK"
    if ! "${as[@]}" test -x "$VFIOD"; then
        # It is in a directory that is root's own.
        [ -e "$WORK/vfiod" ] || install -m 755 "$VFIOD" "$WORK/vfiod"
        COMMAND=("$WORK/vfiod")
    fi
    COMMAND=("${as[@]}" "${COMMAND[@]}")
}

# start_server CONFIG-TEXT SOCKET...: vfiod serves, in its sandbox, until the scenario ends.
start_server() {
    printf '%s\n' "$1" >"$WORK/config.toml"
    shift
    local COMMAND
    server_command
    # Now: what a server before this one has logged must not be taken for its.
    : >"$WORK/server.log"
    "${COMMAND[@]}" serve "$WORK/config.toml" --log debug 2>"$WORK/server.log" &
    SERVER_PID=$!
    local socket
    for socket in "$@"; do wait_for "socket $socket" test -S "$WORK/$socket"; done
    logged 'sandbox entered.*landlock=[0-9]+ seccomp=true'
}

# stop_server: SIGTERM, which must end it with exit code 0. Then what was captured is replayed.
stop_server() {
    local pid=$SERVER_PID
    SERVER_PID=''
    kill -TERM "$pid"
    wait_for "the server's end" not kill -0 "$pid"
    wait "$pid"
    replay_captures
}

# capture NAME SOCKET DEVICE [OPTION...]: captures the session of the guest that connects to
# $WORK/NAME.captured instead of $WORK/SOCKET. DEVICE is a device of the configuration, or a model with
# its options KEY=VALUE.
CAPTURES=()
capture() {
    "$VFIOD" capture "$WORK/$2" "$WORK/$1.capture" --listen "$WORK/$1.captured" \
        >"$WORK/$1.capture.out" 2>&1 &
    CAPTURES+=("$! $1 ${*:3}")
    wait_for "the capture's socket" is_socket_or_ended "$WORK/$1.captured" $!
    [ -S "$WORK/$1.captured" ] || { cat "$WORK/$1.capture.out"; return 1; }
}
is_socket_or_ended() { [ -S "$1" ] || ! kill -0 "$2"; }

# replay_captures: what was captured replays without a difference, also if the device is saved,
# dropped and rebuilt after every message; of a capture of several megabytes, after so many more
# messages, as the debug build takes most of a millisecond each time.
replay_captures() {
    local entry pid name device options option rebuild every arguments
    for entry in "${CAPTURES[@]}"; do
        read -r pid name device options <<<"$entry"
        wait_for "the end of capture $name" not kill -0 "$pid"
        wait "$pid" || { cat "$WORK/$name.capture.out"; return 1; }
        arguments=("$WORK/$name.capture" --device "$device")
        if grep -qF "[device.$device]" "$WORK/config.toml"; then
            arguments+=(--config "$WORK/config.toml")
        fi
        for option in $options; do arguments+=(--option "$option"); done
        # An odd number: a driver's accesses often come in pairs.
        every=$(($(stat -c %s "$WORK/$name.capture") / 1000000 * 2 + 1))
        for rebuild in '' "--rebuild --rebuild-every $every"; do
            echo "--- replay of $name ($device) $rebuild"
            # shellcheck disable=SC2086
            "$VFIOD" replay "${arguments[@]}" $rebuild
        done
    done
    CAPTURES=()
}
not() { ! "$@"; }

# logged PATTERN: the server's log has a line like that by now or soon.
logged() { wait_for "log line: $1" grep -qE "$1" "$WORK/server.log"; }

# guest NAME SCRIPT-TEXT OPTIONS...: boots a guest; its output goes to NAME.out.
guest() {
    local name=$1
    { cat "$GUEST_LIB"; printf '%s\n' "$2"; } >"$WORK/$name.sh"
    shift 2
    run_guest "$name" --script "$WORK/$name.sh" --file "$EDU_TOOL:/usr/bin/edu" --timeout "$GUEST_PATIENCE" "$@"
}

# run_guest NAME OPTIONS...: run-guest.sh with these; NAME.out has what it prints, and there is NAME.ended at its end.
run_guest() {
    local name=$1 status=0
    shift
    "$HARNESS_DIR/run-guest.sh" "$@" >"$WORK/$name.out" 2>&1 &
    echo $! >"$WORK/$name.guest"
    wait $! || status=$?
    rm "$WORK/$name.guest"
    touch "$WORK/$name.ended"
    [ "$status" != 0 ] || return 0
    echo "--- guest $name ended with status $status"
    tail -n 60 "$WORK/$name.out"
    return "$status"
}

# said NAME PATTERN: the guest printed a line like that by now, or does so before it ends.
said() {
    local end=$((SECONDS + GUEST_PATIENCE)) ended=''
    while [ "$SECONDS" -lt "$end" ] && [ -z "$ended" ]; do
        [ ! -e "$WORK/$1.ended" ] || ended=yes
        ! grep -qE "$2" "$WORK/$1.out" 2>/dev/null || return 0
        [ -n "$ended" ] || sleep 0.1
    done
    echo "guest $1 ${ended:+has ended and }has not said: $2"
    tail -n 60 "$WORK/$1.out"
    return 1
}

# control TEXT: a line to the gpio's control socket; prints the answer.
control() { printf '%s\n' "$1" | "$CACHE_DIR/unixcat" "$WORK/control.sock"; }

# qmp COMMAND: sends a command to the guest's monitor $WORK/qmp; prints the greeting and the answers.
qmp() {
    printf '%s\n' '{"execute":"qmp_capabilities"}' "$1" | "$CACHE_DIR/unixcat" -q "$WORK/qmp"
}

lines_are() { control get | grep -q "$1"; }

# when_output MASK INPUT: the outside world; sets an input once the outputs are exactly MASK. A guest boots meanwhile.
when_output() {
    local PATIENCE=$GUEST_PATIENCE
    wait_for "outputs $1" lines_are "outputs $1"
    control "set $2 1"
}

# Configurations: a slot with two functions, and single devices.
slot_config() {
    cat <<EOF
[bus.backplane]
number = 1
reset = "slot"
[slot.card]
bus = "backplane"
number = 2
[device.lines]
model = "gpio"
slot = "card"
function = 0
socket = { path = "$WORK/lines.sock" }
options = { control = "$WORK/control.sock" }
[device.edu]
model = "edu"
slot = "card"
function = 1
socket = { path = "$WORK/edu.sock" }
EOF
}

device_config() { # MODEL
    cat <<EOF
[device.$1]
model = "$1"
socket = { path = "$WORK/$1.sock" }
EOF
}
