# A guest reboots: the devices are reset with it, and work again.
. "$(dirname "$0")/../scenario.sh"
start_server "$(slot_config)
$(device_config template)" lines.sock edu.sock template.sock

# The outside remembers across the reboot: when output 7 goes on, input 7 does.
when_output 0x0080 7 &

guest vm '
set -e
template() { devmem $(($(setpci -d 1234:7e31 BASE_ADDRESS_0 | sed "s/^/0x/") + $1)) 32 $2; }
setpci -d 1234:7e31 COMMAND=2:2
template 0 | grep -i 0x7666696F
template 4 | grep 0x00000000
if [ "$(gpioget -c gpiochip0 --numeric IIN7)" = 0 ]; then
    echo "first boot"
    template 4 0x1234
    template 4 | grep 0x00001234
    template 8 | grep 0x00000001
    gpioset -c gpiochip0 -t 0 OUT7=1
    while [ "$(gpioget -c gpiochip0 --numeric IIN7)" = 0 ]; do sleep 0.2; done
    reboot -f
    sleep 60
fi
echo "second boot"
modprobe uio_pci_generic
edu uio
' --reboot --socket "$WORK/lines.sock" --socket "$WORK/edu.sock" --socket "$WORK/template.sock"
cat "$WORK/vm.out"
grep -q "first boot" "$WORK/vm.out"
grep -q "second boot" "$WORK/vm.out"
stop_server
