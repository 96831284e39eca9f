# Two VMs, each with one function of the same slot. The first one's process asks for a hot reset of
# the slot: refused as long as the other VM has the other function, done once that is gone, and
# the first VM goes on with a card that was reset.
#
# QEMU itself never asks. A process connects to the server and then becomes QEMU (host/beside.c):
# for the server, by the kernel's word, what is asked on that connection is asked by the VM.
. "$(dirname "$0")/../scenario.sh"
config=$(slot_config | sed '/^\[device.lines\]/a open = "multi"')
start_server "$config
[control]
socket = \"$WORK/api.sock\"" lines.sock edu.sock api.sock
export VFIOD_CONTROL=$WORK/api.sock

mkfifo "$WORK/commands"
: >"$WORK/answers"
mapfile -t qemu < <(qemu_command)
{
    echo '#!/bin/sh'
    printf 'exec'
    printf ' %q' "$CACHE_DIR/beside" "$WORK/lines.sock" "$WORK/commands" "$WORK/answers" "${qemu[@]}"
    echo ' "$@"'
} >"$WORK/qemu"
chmod +x "$WORK/qemu"

# ask COMMAND: prints the answer.
ask() {
    local before
    before=$(wc -l <"$WORK/answers")
    echo "$1" >&3
    wait_for "answer to $1" test_lines $((before + 1))
    tail -n 1 "$WORK/answers"
}
test_lines() { [ "$(wc -l <"$WORK/answers")" -ge "$1" ]; }

VFIOD_E2E_QEMU=$WORK/qemu guest lines '
set -e
gpioset -c gpiochip0 -t 0 OUT4=1
echo "output 4 is on"
is_on() { [ "$(gpioget -c gpiochip0 --numeric $1)" = 1 ]; }
wait_for is_on IIN0
gpioset -c gpiochip0 -t 0 OUT5=1
' --socket "$WORK/lines.sock" &
lines=$!
# Holds the FIFO open, whether the other end is there or not.
exec 3<>"$WORK/commands"
capture edu edu.sock edu
guest edu '
modprobe uio_pci_generic; edu uio
echo "the other one is up"
while true; do sleep 60; done
' --socket "$WORK/edu.captured" --qmp "$WORK/qmp" &
edu=$!
said lines "output 4 is on"
said edu "the other one is up"
wait_for "output 4" lines_are "outputs 0x0010"

echo "both are up: refused (EINVAL), to the operator as well, and nothing is reset"
[ "$(ask members)" = "members 0 2 0" ]
[ "$(ask hot-reset)" = "hot-reset 22" ]
if "$VFIOD" reset --set "slot 0000:01:02" >"$WORK/refused" 2>&1; then exit 1; fi
cat "$WORK/refused"
grep -q "is in use by process" "$WORK/refused"
lines_are "outputs 0x0010"

qmp '{"execute":"quit"}' >/dev/null || true # it may be gone before it has answered
wait "$edu" || true # 125: it ended without a word
grep -q "edu: all well" "$WORK/edu.out"
echo "the other one is gone: allowed"
free_to_reset() { [ "$(ask members)" = "members 0 2 1" ]; }
wait_for "the file's end" free_to_reset
[ "$(ask hot-reset)" = "hot-reset 0" ]
lines_are "outputs 0x0000"
"$VFIOD" probe "$WORK/edu.sock" | grep -A 2 "Device set: 2 members"

echo "the first one goes on"
control "set 0 1"
wait "$lines"
lines_are "outputs 0x00[23]0"
exec 3>&-
stop_server
