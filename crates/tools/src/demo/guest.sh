# Runs in the guest: drives both functions of the slot as Linux does, and tells each step.
set -e
shown() { echo "shown $1: $2"; }
die() { echo "failed: $*"; exit 1; }

gpio=$(lspci -nD -d 494f:0dc8 | cut -d' ' -f1)
edu=$(lspci -nD -d 1234:11e8 | cut -d' ' -f1)
[ "${gpio%.*}" = "${edu%.*}" ] || die "functions in two slots: $gpio, $edu"
shown guest-sees-functions "Linux $(uname -r) sees functions $gpio (gpio) and $edu (edu) in one slot"

lspci -k -s "$gpio" | grep -q "driver in use: pci-idio-16" || die "gpio has no driver"
chip=gpiochip0
gpioset -c "$chip" -t 0 OUT0=1 OUT5=1
shown guest-gpio-outputs "Linux's gpio-pci-idio-16 drives it; outputs 0 and 5 set, and seen outside"
on=$(gpioget -c "$chip" --numeric IIN3)
off=$(gpioget -c "$chip" --numeric IIN4)
[ "$on$off" = 10 ] || die "inputs 3 and 4 read $on and $off"
shown guest-gpio-inputs "input 3 reads on and input 4 off, as they were switched outside"

# All inputs: the driver hands its one status bit to every input's interrupt, and (Linux 7.3)
# trips over those that nobody asked for.
all=$(seq 0 15 | sed s/^/IIN/)
gpiomon -c "$chip" -n 16 --idle-timeout 20s $all >events &
monitor=$!
sleep 0.5
shown guest-gpio-waiting "waiting for an interrupt with gpiomon; input 7 is being switched on outside"
wait $monitor
grep -q 'rising.*IIN7' events || die "no event of input 7"
shown guest-gpio-interrupt "the driver got the interrupt, gpiomon the event"

bar=$(($(sed -n 1p "/sys/bus/pci/devices/$edu/resource" | cut -d' ' -f1)))
setpci -s "$edu" COMMAND=6:6
reg() { devmem $((bar + $1)) 32 $2; }
[ $(($(reg 0))) = $((0x010000ed)) ] || die "identification $(reg 0)"
shown guest-edu-identification "edu answers in BAR 0: identification $(reg 0)"
reg 8 10
[ $(($(reg 8))) = 3628800 ] || die "10! is $(reg 8)"
shown guest-edu-factorial "edu computes 10! = $(($(reg 8)))"

ram=$((0x0f000000))
devmem $ram 32 0xcafe1234
devmem $((ram + 4096)) 32 0
dma() {
    reg 0x80 $1; reg 0x88 $2; reg 0x90 4; reg 0x98 $3
    for _ in 1 2 3 4 5 6 7 8 9 10; do [ $(($(reg 0x98) & 1)) = 0 ] && return; sleep 0.1; done
    die "DMA does not end"
}
dma $ram $((0x40000)) 1
dma $((0x40000)) $((ram + 4096)) 3
[ $(($(devmem $((ram + 4096)) 32))) = $((0xcafe1234)) ] || die "DMA brought $(devmem $((ram + 4096)) 32)"
shown guest-dma "DMA through edu's buffer brought 0xcafe1234 from one guest page to another"

modprobe uio_pci_generic
echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id
(sleep 0.3; reg 0x60 0x40) &
n=$(timeout 10 dd if=/dev/uio0 bs=4 count=1 2>/dev/null | wc -c)
[ "$n" = 4 ] || die "no interrupt"
[ $(($(reg 0x24))) = $((0x40)) ] || die "cause $(reg 0x24)"
reg 0x64 0x40
shown guest-interrupt "edu raised its interrupt and uio_pci_generic saw it"
