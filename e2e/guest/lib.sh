# What the scripts of guests have in common: `guest` of scenario.sh puts it in front of each. For busybox.
# shellcheck shell=busybox

fail() {
    echo "failed: $*"
    dmesg | tail -n 20
    exit 1
}

uptime() { cut -d . -f 1 /proc/uptime; }

# wait_for COMMAND...: until it succeeds. By the clock, as each try takes long where the machine is busy; for less
# than the guest has. VFIOD_PATIENCE of the host is vfiod.patience here.
wait_for() {
    local times=$(sed -n 's/.*vfiod.patience=\([0-9]*\).*/\1/p' /proc/cmdline)
    local end=$(($(uptime) + 240 * ${times:-1}))
    until "$@" 2>/dev/null; do
        [ "$(uptime)" -lt $end ] || fail "waited for: $*"
        sleep 0.1
    done
}

is_file_with() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; } # FILE TEXT
