# nvme-cli in a guest: what it shows of our controller, what it does to the disk, and what is refused. Then a disk
# with two controllers: one subsystem with two paths, for Linux, which goes on by one when the other is gone.
. "$(dirname "$0")/../scenario.sh"
truncate -s 64M "$WORK/disk.img" "$WORK/shared.img"
start_server "
[device.disk]
model = \"nvme\"
socket = { path = \"$WORK/disk.sock\" }
options = { file = \"$WORK/disk.img\", serial = \"E2E-CLI\", torn_writes = true }
[device.left]
model = \"nvme\"
socket = { path = \"$WORK/left.sock\" }
options = { file = \"$WORK/shared.img\", serial = \"E2E-SHARED\", shared = true }
[device.right]
model = \"nvme\"
socket = { path = \"$WORK/right.sock\" }
options = { file = \"$WORK/shared.img\", serial = \"E2E-SHARED\", shared = true }" disk.sock left.sock right.sock
"$HARNESS_DIR/build-initramfs.sh" --output "$WORK/initramfs" --only \
    --module nvme --module nvme-core --tool /usr/sbin/nvme

# Each line of the output is what a command has ended with, and what matters of what it has printed.
guest vm '
# One at a time, so that it is known which number each gets.
echo 0 >/sys/bus/pci/drivers_autoprobe
modprobe nvme
echo 0000:00:01.0 >/sys/bus/pci/drivers/nvme/bind
wait_for test -b /dev/nvme0n1
lines() { # PATTERN COMMAND...
    local pattern=$1; shift
    nvme "$@" >/tmp/out 2>&1; local status=$?
    echo "$1: $status"
    grep -E "$pattern" /tmp/out | tr -s "\t " " " | sed "s/ *$//"
}
status() { # COMMAND...
    nvme "$@" >/tmp/out 2>&1 && echo "$1: done" ||
        echo "$1: refused $(grep -oE "\(0x[0-9a-f]+\)" /tmp/out | tail -n 1)"
}
echo "--- begin"
lines "^(sn|mn|mdts|ver|sqes|cqes|vwc) " id-ctrl /dev/nvme0
lines "^(nsze|ncap|nuse|nlbaf|flbas) " id-ns /dev/nvme0n1
lines "E2E-CLI" list
lines "^(critical_warning|media_errors)" smart-log /dev/nvme0
lines "^Error Log Entries" error-log /dev/nvme0
# Without -c it maps the registers, which the kernel does not let it.
lines "^(ACS|IOCS)[0-9]" effects-log /dev/nvme0 -c 0
lines "value" get-feature /dev/nvme0 -f 7
lines "value" set-feature /dev/nvme0 -f 0x0b -V 0x100
lines "value" get-feature /dev/nvme0 -f 0x0b
lines "value" get-feature /dev/nvme0 -f 6
dd if=/dev/urandom of=/tmp/data bs=512 count=8 2>/dev/null
dd if=/dev/zero of=/tmp/zeroes bs=512 count=8 2>/dev/null
status write /dev/nvme0n1 -s 8 -c 7 -z 4096 -d /tmp/data
status compare /dev/nvme0n1 -s 8 -c 7 -z 4096 -d /tmp/data
status compare /dev/nvme0n1 -s 8 -c 7 -z 4096 -d /tmp/zeroes
status read /dev/nvme0n1 -s 8 -c 7 -z 4096 -d /tmp/read
cmp /tmp/data /tmp/read && echo "read: the same"
status write-zeroes /dev/nvme0n1 -s 8 -c 7
status compare /dev/nvme0n1 -s 8 -c 7 -z 4096 -d /tmp/zeroes
status write /dev/nvme0n1 -s 8 -c 7 -z 4096 -d /tmp/data
status dsm /dev/nvme0n1 -n 1 -d -s 8 -b 8
status compare /dev/nvme0n1 -s 8 -c 7 -z 4096 -d /tmp/zeroes
status write /dev/nvme0n1 -s 8 -c 7 -z 4096 -d /tmp/data
status copy /dev/nvme0n1 -d 64 -s 8,8 -b 3,7
status compare /dev/nvme0n1 -s 68 -c 7 -z 4096 -d /tmp/data
status copy /dev/nvme0n1 -d 131068 -s 8 -b 7
status verify /dev/nvme0n1 -s 0 -c 7
status verify /dev/nvme0n1 -s 131071 -c 7
status flush /dev/nvme0n1 -n 1
status get-feature /dev/nvme0 -f 3
status get-log /dev/nvme0 -i 0x70 -l 512
status create-ns /dev/nvme0 -s 100 -c 100 -f 0
status delete-ns /dev/nvme0 -n 1
status attach-ns /dev/nvme0 -n 1 -c 0
status device-self-test /dev/nvme0 -n 1 -s 1
status sanitize /dev/nvme0 -a 2
status write-uncor /dev/nvme0n1 -s 0 -c 0
status format /dev/nvme0n1 -l 7 -f
status format /dev/nvme0n1 -l 1 -f
lines "^(nsze|ncap|nuse|flbas) " id-ns /dev/nvme0n1
echo "blocks of $(cat /sys/block/nvme0n1/queue/logical_block_size), $(cat /sys/block/nvme0n1/size) sectors"
status read /dev/nvme0n1 -s 1 -c 0 -z 4096 -d /tmp/read
cmp /tmp/zeroes /tmp/read && echo "read: zeroes"
status format /dev/nvme0n1 -l 0 -f
echo "blocks of $(cat /sys/block/nvme0n1/queue/logical_block_size), $(cat /sys/block/nvme0n1/size) sectors"
echo "--- end"
for device in 2 3; do echo 0000:00:0$device.0 >/sys/bus/pci/drivers/nvme/bind; done
subsystem=$(dirname "$(grep -l E2E-SHARED /sys/class/nvme-subsystem/*/serial)")
echo "--- shared"
echo "numbers $(cat "$subsystem"/nvme[0-9]/cntlid | tr "\n" " ")"
disk() { echo /dev/$(basename "$subsystem"/nvme*n1); }
paths() { ls -d "$subsystem"/nvme[0-9]/nvme*c*n1 | wc -l; }
live() { nvme list-subsys "$(disk)" | grep -cE "pcie .*live"; }
has_both() { [ -b "$(disk)" ] && [ "$(paths)" = 2 ] && [ "$(live)" = 2 ]; }
wait_for has_both
echo "paths $(paths)"
echo "live $(live)"
disk=$(disk)
dd if=/dev/urandom of=/tmp/data bs=4096 count=64 2>/dev/null
dd if=/tmp/data of="$disk" bs=4096 oflag=direct conv=fsync 2>/dev/null
echo 1 >/sys/bus/pci/devices/0000:00:02.0/remove
dd if="$disk" of=/tmp/read bs=4096 count=64 iflag=direct 2>/dev/null
cmp /tmp/data /tmp/read && echo "read by the other path: the same"
echo "--- shared end"
' --append vfiod.nocoldplug --initramfs "$WORK/initramfs" --socket "$WORK/disk.sock" --socket "$WORK/left.sock" --socket "$WORK/right.sock"
stop_server
# The firmware revision is the version of vfiod.
tr -d '\r' <"$WORK/vm.out" | sed -n '/^--- begin/,/^--- end/{/^---/!{/^.dev.nvme0n1/s/ [^ ]*$//;p}}' >"$WORK/said"
diff - "$WORK/said" <<'END'
id-ctrl: 0
sn : E2E-CLI
mn : vfiod NVMe disk
mdts : 8
ver : 0x20000
sqes : 0x66
cqes : 0x44
vwc : 0x7
id-ns: 0
nsze : 0x20000
ncap : 0x20000
nuse : 0x20000
nlbaf : 1
flbas : 0
list: 0
/dev/nvme0n1 /dev/ng0n1 E2E-CLI vfiod NVMe disk 0x1 67.11 MB / 67.11 MB 512 B + 0 B
smart-log: 0
critical_warning : 0
media_errors : 0
error-log: 0
Error Log Entries for device:nvme0 entries:8
effects-log: 0
ACS0 [Delete I/O Submission Queue ] 00200001
ACS1 [Create I/O Submission Queue ] 00200001
ACS2 [Get Log Page ] 00200001
ACS4 [Delete I/O Completion Queue ] 00200001
ACS5 [Create I/O Completion Queue ] 00200001
ACS6 [Identify ] 00200001
ACS8 [Abort ] 00200001
ACS9 [Set Features ] 00200001
ACS10 [Get Features ] 00200001
ACS12 [Asynchronous Event Request ] 00200001
ACS16 [Firmware Commit ] 00200001
ACS17 [Firmware Image Download ] 00200001
ACS124 [Doorbell Buffer Config ] 00200001
ACS128 [Format NVM ] 00110007
IOCS0 [Flush ] 00100001
IOCS1 [Write ] 00100003
IOCS2 [Read ] 00100001
IOCS5 [Compare ] 00100001
IOCS8 [Write Zeroes ] 00100003
IOCS9 [Dataset Management ] 00100003
IOCS12 [Verify ] 00100001
IOCS25 [Copy ] 00100003
get-feature: 0
get-feature:0x07 (Number of Queues), Current value:0x003f003f
set-feature: 0
set-feature:0x0b (Async Event Configuration), value:0x00000100, cdw12:00000000, save:0
get-feature: 0
get-feature:0x0b (Async Event Configuration), Current value:0x00000100
get-feature: 0
get-feature:0x06 (Volatile Write Cache), Current value:0x00000001
write: done
compare: done
compare: refused (0x4285)
read: done
read: the same
write-zeroes: done
compare: done
write: done
dsm: done
compare: done
write: done
copy: done
compare: done
copy: refused (0x4080)
verify: done
verify: refused (0x4080)
flush: done
get-feature: refused (0x4002)
get-log: refused (0x4109)
create-ns: refused (0x4001)
delete-ns: refused (0x4001)
attach-ns: refused (0x4001)
device-self-test: refused (0x4001)
sanitize: refused (0x4001)
write-uncor: refused (0x4001)
format: refused (0x410a)
format: done
id-ns: 0
nsze : 0x4000
ncap : 0x4000
nuse : 0x4000
flbas : 0x1
blocks of 4096, 131072 sectors
read: done
read: zeroes
format: done
blocks of 512, 131072 sectors
END
tr -d '\r' <"$WORK/vm.out" | sed -n '/^--- shared$/,/^--- shared end/{/^---/!p}' | sed 's/ *$//' >"$WORK/said"
diff - "$WORK/said" <<'END'
numbers 1 2
paths 2
live 2
read by the other path: the same
END
