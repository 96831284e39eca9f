# Two VMs at once, each with one function of the same slot: one set, two users.
. "$(dirname "$0")/../scenario.sh"
start_server "$(slot_config)" lines.sock edu.sock
capture lines lines.sock lines
capture edu edu.sock edu
guest lines '
set -e
gpioset -c gpiochip0 -t 0 OUT4=1
is_on() { [ "$(gpioget -c gpiochip0 --numeric $1)" = 1 ]; }
wait_for is_on IIN0
' --socket "$WORK/lines.captured" &
lines=$!
guest edu 'modprobe uio_pci_generic; edu uio' --socket "$WORK/edu.captured"
grep -q "edu: all well" "$WORK/edu.out"
control "set 0 1"
wait "$lines"
stop_server
