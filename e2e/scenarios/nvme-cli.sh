# nvme-cli in a guest: what it shows of our controller, what it does to the disk, and what is refused.
. "$(dirname "$0")/../scenario.sh"
truncate -s 64M "$WORK/disk.img"
start_server "
[device.disk]
model = \"nvme\"
socket = { path = \"$WORK/disk.sock\" }
options = { file = \"$WORK/disk.img\", serial = \"E2E-CLI\" }" disk.sock
"$HARNESS_DIR/build-initramfs.sh" --output "$WORK/initramfs" --only \
    --module nvme --module nvme-core --tool /usr/sbin/nvme

# Each line of the output is what a command has ended with, and what matters of what it has printed.
guest vm '
modprobe nvme
for n in $(seq 100); do [ -b /dev/nvme0n1 ] && break; sleep 0.2; done
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
lines "^nothing" error-log /dev/nvme0
# Without -c it maps the registers, which the kernel does not let it.
lines "^nothing" effects-log /dev/nvme0 -c 0
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
status verify /dev/nvme0n1 -s 0 -c 7
status flush /dev/nvme0n1 -n 1
status create-ns /dev/nvme0 -s 100 -c 100 -f 0
status write-uncor /dev/nvme0n1 -s 0 -c 0
echo "--- end"
' --initramfs "$WORK/initramfs" --socket "$WORK/disk.sock"
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
effects-log: 0
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
verify: done
flush: done
create-ns: refused (0x4001)
write-uncor: refused (0x4001)
END
