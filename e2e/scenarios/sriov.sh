# A guest with a physical function behind a root port and one of its virtual functions. QEMU
# presents no VF token, so the configuration does; without one a virtual function stays closed.
. "$(dirname "$0")/../scenario.sh"
token='vf_token = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"'
function_config() { # NAME REST
    printf '[device.%s]\nmodel = "edu"\nsocket = "%s/%s.sock"\n%s\n' "$1" "$WORK" "$1" "$2"
}
start_server "
bus.root.reset = \"none\"
bus.port = { number = 1, bridge = \"root/01.0\" }
slot.card.bus = \"port\"
$(function_config pf "slot = \"card\"
virtual_functions = 2
$token")
$(function_config vf0 "physical_function = \"pf\"
$token")
$(function_config vf1 "physical_function = \"pf\"
function = 1")" pf.sock vf0.sock vf1.sock

if "$VFIOD" probe "$WORK/vf0.sock"; then exit 1; fi
logged "the VF token is not the one that was set" # nobody has set any

capture pf pf.sock pf
capture vf0 vf0.sock vf0
guest vm '
set -e
lspci -vv -s 05.0; lspci -vv -s 06.0
lspci -n -s 05.0 | grep "1234:11e8"
lspci -n -s 06.0 | grep "1234:11e8"
lspci -vv -s 05.0 | grep "Interrupt: pin A"
! lspci -vv -s 06.0 | grep "Interrupt: pin"
lspci -vv -s 06.0 | grep "MSI: Enable- Count=1/1"
# Registers and DMA of the virtual function. The tool is not content, because there is no pin.
modprobe uio_pci_generic
edu uio --device 0000:00:06.0 >vf.log 2>&1 && exit 1
cat vf.log
grep "factorial of 10 0x375f00" vf.log
grep "DMA both ways" vf.log
grep "FAILED: no interrupt: INTx" vf.log
' --socket "$WORK/pf.captured" --prop addr=05.0 --socket "$WORK/vf0.captured" --prop addr=06.0
cat "$WORK/vm.out"

if "$VFIOD" probe "$WORK/vf1.sock"; then exit 1; fi
logged "the VF token is missing"
stop_server
