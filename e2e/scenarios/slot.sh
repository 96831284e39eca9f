# Two functions of one slot in a guest: what lspci sees, gpio through Linux's own driver with
# outputs, inputs and an interrupt, edu with DMA and INTx.
. "$(dirname "$0")/../scenario.sh"
start_server "$(slot_config)" lines.sock edu.sock
capture lines lines.sock lines
capture edu edu.sock edu

# The outside world: when output 1 goes on, input 3 does.
when_output 0x0002 3 &

guest vm '
set -e
lspci -vvv -s 05.0; lspci -vvv -s 05.1
lspci -nnk -s 05.0 | grep "Kernel driver in use: pci-idio-16"
lspci -n -s 05.1 | grep "00ff: 1234:11e8 (rev 10)"
lspci -vvv -s 05.1 >edu.lspci
grep "Power Management version 3" edu.lspci
grep "MSI: Enable- Count=1/1 Maskable+ 64bit+" edu.lspci
grep "Express (v2)" edu.lspci
grep "FLReset+" edu.lspci
grep "Device Serial Number 00-11-e8-ff-fe-12-34-00" edu.lspci
gpioget -c gpiochip0 --numeric IIN3 | grep -x 0
# All inputs, because the driver hands its one status bit to every input, and trips over those
# that nobody asked for.
gpiomon -c gpiochip0 -n 16 --idle-timeout 240s $(seq 0 15 | sed s/^/IIN/) >events &
monitor=$!
# All but the last line are watched by then.
are_watched() { [ "$(gpioinfo -c gpiochip0 | grep -c gpiomon)" = 16 ]; }
wait_for are_watched
gpioset -c gpiochip0 -t 0 OUT1=1
wait $monitor
cat events
grep "rising.*IIN3" events
gpioget -c gpiochip0 --numeric IIN3 | grep -x 1
modprobe uio_pci_generic
edu uio
' --socket "$WORK/lines.captured" --prop addr=05.0 --prop multifunction=true \
    --socket "$WORK/edu.captured" --prop addr=05.1
cat "$WORK/vm.out"
grep -q "edu: all well" "$WORK/vm.out"
stop_server
