# A guest reboots: the devices are reset with it, and work again.
. "$(dirname "$0")/../scenario.sh"
start_server "$(slot_config)
$(device_config template)
$(device_config bench)" lines.sock edu.sock template.sock bench.sock
for name in lines edu template bench; do capture $name $name.sock $name; done

# The outside remembers across the reboot: when output 7 goes on, input 7 does.
when_output 0x0080 7 &

guest vm '
set -e
is_on() { [ "$(gpioget -c gpiochip0 --numeric $1)" = 1 ]; }
template() { devmem $(($(setpci -d 1234:7e31 BASE_ADDRESS_0 | sed "s/^/0x/") + $1)) 32 $2; }
setpci -d 1234:7e31 COMMAND=2:2
template 0 | grep -i 0x7666696F
template 4 | grep 0x00000000
if ! is_on IIN7; then
    echo "first boot"
    template 4 0x1234
    template 4 | grep 0x00001234
    template 8 | grep 0x00000001
    gpioset -c gpiochip0 -t 0 OUT7=1
    wait_for is_on IIN7
    reboot -f
    sleep 60
fi
echo "second boot"
bench() { devmem $(($(setpci -d 1234:7e32 BASE_ADDRESS_2 | sed "s/^/0x/") + $1)) 64 $2; }
setpci -d 1234:7e32 COMMAND=6:6
# Reads 64 bytes of memory once.
bench 0x08 1
bench 0x10 0x100000
bench 0x20 1
bench 0x28 64
bench 0x00 3
has_ended() { [ $(($(bench 0x48))) = 0 ]; }
wait_for has_ended
[ $(($(bench 0x38))) = 0 ]
echo "bench has read memory"
modprobe uio_pci_generic
edu uio
' --reboot --socket "$WORK/lines.captured" --socket "$WORK/edu.captured" \
    --socket "$WORK/template.captured" --socket "$WORK/bench.captured"
cat "$WORK/vm.out"
grep -q "first boot" "$WORK/vm.out"
grep -q "second boot" "$WORK/vm.out"
grep -q "bench has read memory" "$WORK/vm.out"
stop_server
