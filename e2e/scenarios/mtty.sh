# A guest runs with another device; serial cards are created through the control API and plugged
# in. Linux's own 8250_pci finds their ports; characters go through the plug and through a
# pseudo-terminal, both ways. They are removed in use: refused, at a deadline, when they are free.
. "$(dirname "$0")/../scenario.sh"
start_server "
[device.lines]
model = \"gpio\"
socket = { path = \"$WORK/lines.sock\" }
options = { control = \"$WORK/control.sock\" }
[parent.serial]
model = \"serial\"
options = { links = \"$WORK\" }
[mdev]
sockets = \"$WORK/mdev\"
[control]
socket = { path = \"$WORK/api.sock\" }" lines.sock api.sock
capture lines lines.sock lines

export VFIOD_CONTROL=$WORK/api.sock
PLUG=83b8f4f2-509f-382f-3c1e-e6bfe0fa1001     # two ports, each with a plug
TERMINAL=83b8f4f2-509f-382f-3c1e-e6bfe0fa1002 # one port, with a pseudo-terminal

plug_in() { # ROOT-PORT, whose name is also that of the capture
    qmp '{"execute":"device_add","arguments":{"driver":"vfio-user-pci","id":"'"$1-card"'","bus":"'"$1"'","socket":{"type":"unix","path":"'"$WORK/$1.captured"'"}}}'
}
tell() { control "set $1 1" | grep -x ok; } # the guest waits for its input
busy() { # COMMAND...: vfiod says: not now
    local status=0
    "$VFIOD" "$@" || status=$?
    [ "$status" = 4 ]
}
left() { "$VFIOD" types --json | grep -A20 '"mtty-1"' | grep -m1 available; }

seq 1 3000 >"$WORK/text"
guest vm '
is_on() { [ "$(gpioget -c gpiochip0 --numeric $1)" = 1 ]; }
told() { wait_for is_on IIN$1; }

# card COUNT: waits for a card that was not there before and has so many ports, and names them.
seen=""
card() {
    wait_for has_card $1
    seen="$seen $device"
    lspci -nnk -s ${device##*/}
}
has_card() {
    for device in /sys/bus/pci/devices/*; do
        [ "$(cat $device/vendor)" = 0x4348 ] || continue
        case "$seen" in *$device*) continue ;; esac
        real=$(readlink -f $device)
        ports=$(for port in /sys/class/tty/ttyS*; do
            case $(readlink -f $port) in $real/*) basename $port ;; esac
        done)
        [ $(echo $ports | wc -w) != $1 ] || return 0
    done
    return 1
}

loopback() { # PORT
    stty -F /dev/$1 raw -echo crtscts 115200
    exec 3<>/dev/$1
    head -c $(wc -c </root/text) <&3 >/tmp/$1 &
    cat /root/text >&3
    wait $!
    exec 3>&-
    cmp /root/text /tmp/$1
}

set -e
gpioset -c gpiochip0 -t 0 OUT0=1
echo "the guest runs"
card 2
plugs=$(echo $ports)
plug=${plugs%% *}
for port in $plugs; do
    loopback $port
    # By interrupts, not by looking now and then.
    exec 4<>/dev/$port
    grep $port /proc/interrupts
    [ $(grep $port /proc/interrupts | awk "{ print \$2 }") -gt 10 ]
    exec 4>&-
done
echo "the plugs carry all"

card 1
terminal=$ports
dmesg | grep "ttyS.*is a 16550A"
stty -F /dev/$terminal raw -echo crtscts 115200
exec 5<>/dev/$terminal
echo "the guest listens"
head -c $(wc -c </root/text) <&5 | cmp - /root/text
cat /root/text >&5
head -c 1 <&5 | grep -x .
echo "the terminal carries all"

# The host wants the first card back, and is refused.
told 1
loopback $plug
echo "the guest keeps it"

# It takes it at a deadline, whoever has it open.
exec 6<>/dev/$plug
echo "the guest has it open"
told 2
stty -F /dev/$plug 9600 || true
exec 6>&-
cards_are() { [ $(lspci -n -d 4348: | wc -l) = $1 ]; }
wait_for cards_are 1
echo "the guest lives without it"

# It waits for the second one; the guest lets go when it likes: it turns the slot off.
told 3
echo "until the end" >&5
exec 5>&-
slot=$(basename $(grep -l "$(basename $(lspci -Dn -d 4348: | cut -d. -f1))" /sys/bus/pci/slots/*/address | xargs dirname))
echo 0 >/sys/bus/pci/slots/$slot/power
wait_for cards_are 0
echo "the guest lets go"
gpioget -c gpiochip0 --numeric IIN3 | grep -x 1
' --socket "$WORK/lines.captured" --root-port --qmp "$WORK/qmp" --append 8250.nr_uarts=8 \
    --file "$WORK/text:/root/text" -- \
    -device pcie-root-port,id=first,chassis=8,slot=8 \
    -device pcie-root-port,id=second,chassis=9,slot=9 &
vm=$!
said vm "the guest runs"
lines_are "outputs 0x0001"

"$VFIOD" create serial mtty-2 --uuid $PLUG | grep -x $PLUG
capture first mdev/$PLUG.sock serial ports=2
plug_in first
said vm "the plugs carry all"

"$VFIOD" create serial mtty-1 --uuid $TERMINAL -a backend=pty | grep -x $TERMINAL
left | grep 21
test ! -e "$WORK/$TERMINAL.0"
capture second mdev/$TERMINAL.sock serial backend=pty
plug_in second
wait_for "its terminal" test -c "$WORK/$TERMINAL.0"
"$VFIOD" show $TERMINAL | grep "pty0: $(readlink "$WORK/$TERMINAL.0")"
said vm "the guest listens"
exec 5<>"$WORK/$TERMINAL.0"
cat "$WORK/text" >&5
head -c "$(wc -c <"$WORK/text")" <&5 | cmp - "$WORK/text"
printf '!' >&5
said vm "the terminal carries all"
busy modify $TERMINAL --live -a backend=none

echo "--- refuse"
busy remove $PLUG
tell 1
said vm "the guest keeps it"

echo "--- deadline"
said vm "the guest has it open"
"$VFIOD" remove $PLUG --deadline 2s
if "$VFIOD" show $PLUG; then exit 1; fi
test ! -e "$WORK/mdev/$PLUG.sock"
left | grep 23
tell 2
qmp '{"execute":"device_del","arguments":{"id":"first-card"}}'
said vm "the guest lives without it"

echo "--- wait"
"$VFIOD" remove $TERMINAL --wait &
remover=$!
leaving() { "$VFIOD" show $TERMINAL --json | grep -q leaving && test ! -e "$WORK/mdev/$TERMINAL.sock"; }
wait_for "it is leaving" leaving
kill -0 $remover
head -c 14 <&5 >"$WORK/last" & # before the terminal is gone
reader=$!
tell 3
said vm "the guest lets go"
wait $reader
exec 5>&-
grep -x "until the end" "$WORK/last"
wait $remover
test ! -L "$WORK/$TERMINAL.0"
left | grep 24
wait "$vm"
cat "$WORK/vm.out"
stop_server
