# mdevctl, unmodified, does its work on a running vfiod; a guest uses what it started; a killed
# daemon comes back with what was defined.
. "$(dirname "$0")/../scenario.sh"
if [ "$(id -u)" != 0 ] && ! command -v fusermount3 >/dev/null; then
    echo "mounting needs root or fusermount3"
    exit 77
fi
if [ ! -c /dev/fuse ]; then
    echo "there is no /dev/fuse"
    exit 77
fi

# Root mounts the view, for everybody.
SERVER_USER=root
SYS=$WORK/root/sys
A=83b8f4f2-509f-382f-3c1e-e6bfe0fa1001
B=83b8f4f2-509f-382f-3c1e-e6bfe0fa1002

export VFIOD_CONTROL=$WORK/control.sock
mdev() { MDEVCTL_ENV_ROOT=$WORK/root RUST_BACKTRACE=0 run_mdevctl "$@"; }

# refused PATTERN COMMAND...: the command fails, and says a line like that.
refused() {
    local pattern=$1 said
    shift
    if said=$("$@" 2>&1); then
        echo "not refused: $*"
        return 1
    fi
    grep -qE "$pattern" <<<"$said" || { echo "$* said: $said"; return 1; }
}

# is COMMAND...: the command prints what is on standard input, no more, no less.
is() {
    local said
    said=$("$@" 2>&1) || { echo "$* failed: $said"; return 1; }
    diff <(cat) <(printf '%s' "${said:+$said
}")
}

serve() {
    start_server "
[parent.lines]
model = \"gpio\"
options = { instances = 2 }
[parent.teacher]
model = \"edu\"
[mdev]
sockets = \"$WORK/mdev\"
definitions = \"$WORK/definitions\"
sysfs = \"$WORK/root\"
[control]
socket = { path = \"$WORK/control.sock\" }" control.sock
    logged 'ready'
}
serve

mdev --version
is mdev types -p lines <<EOF
lines
  gpio-16
    Available instances: 2
    Device API: vfio-pci
    Name: gpio
    Description: ACCES PCI-IDIO-16: 16 outputs, 16 inputs
EOF
mdev types --dumpjson | grep -q '"edu-1"'
is mdev list </dev/null
refused 'not an active mdev' mdev stop -u $A

# Defined, changed, started.
mdev define -u $A -p lines -t gpio-16
refused 'already defined' mdev define -u $A -p lines -t gpio-16
is mdev list --defined <<<"$A lines gpio-16 manual"
mdev modify -u $A --auto
mdev modify -u $A --addattr=inputs --value=0xa5
mdev modify -u $A --addattr=inputs --value=3
mdev modify -u $A --delattr --index=1
is mdev list --defined --verbose <<EOF
$A lines gpio-16 auto
  Attrs:
    @{0}: {"inputs":"0xa5"}
EOF
is cat "$WORK/definitions/lines/$A" <<'EOF'
{
  "mdev_type": "gpio-16",
  "start": "auto",
  "attrs": [
    {
      "inputs": "0xa5"
    }
  ]
}
EOF
mdev start -u $A
is mdev list <<<"$A lines gpio-16 auto (defined)"
is cat "$SYS/bus/mdev/devices/$A/inputs" <<<0x00a5
"$VFIOD" probe "$WORK/mdev/$A.sock" | grep -i 494f
"$VFIOD" show $A | grep -A1 attributes | grep 'inputs: 0x00a5'
"$VFIOD" show $A | grep 'defined: auto'

# Another one that nobody has defined; then none is left.
mdev start -u $B -p lines -t gpio-16
refused 'already exists' mdev start -u $B -p lines -t gpio-16
refused 'different parent' mdev start -u $B -p teacher -t edu-1
refused 'No available instances' mdev start -p lines -t gpio-16
refused 'does not support mdev type' mdev start -p lines -t edu-1
refused 'Unable to find parent' mdev start -p nobody -t edu-1
is mdev list <<EOF
$A lines gpio-16 auto (defined)
$B lines gpio-16 manual
EOF
is mdev list --dumpjson <<EOF
[
  {
    "lines": [
      {
        "$A": {
          "mdev_type": "gpio-16",
          "start": "auto",
          "attrs": []
        }
      },
      {
        "$B": {
          "mdev_type": "gpio-16",
          "start": "manual",
          "attrs": []
        }
      }
    ]
  }
]
EOF

"$VFIOD" list instances | grep "^$A .*lines .*gpio-16"
"$VFIOD" list instances | grep "^$B .*lines .*gpio-16"

# What mdevctl checks before it writes, written past it.
exists() { echo $A >"$SYS/class/mdev_bus/teacher/mdev_supported_types/edu-1/create"; }
no_more() { uuidgen_like >"$SYS/class/mdev_bus/lines/mdev_supported_types/gpio-16/create"; }
uuidgen_like() { cat /proc/sys/kernel/random/uuid; }
rubbish() { echo rubbish >"$SYS/class/mdev_bus/teacher/mdev_supported_types/edu-1/create"; }
too_many() { echo 65536 >"$SYS/bus/mdev/devices/$A/inputs"; }
refused 'File exists' exists
refused 'Too many users' no_more
refused 'Invalid argument' rubbish
refused 'Invalid argument' too_many
is mdev list -p teacher </dev/null

# An attribute that is out of range: not started, nothing is left of it.
C=$(mdev define -p teacher -t edu-1)
mdev modify -u "$C" --addattr=dma_mask --value=wide
refused 'Failed to write wide' mdev start -u "$C"
is mdev list -p teacher </dev/null
"$VFIOD" list definitions | grep "^$C .*manual .*no .*dma_mask=wide"
mdev undefine -u "$C"
test -z "$("$VFIOD" list definitions | grep "$C" || true)"
refused 'No devices match' mdev undefine -u "$C"

# What vfiod does, mdevctl sees.
C=$("$VFIOD" define teacher edu-1 --auto -a dma_mask=0xffff)
is mdev list --defined -p teacher --verbose <<EOF
$C teacher edu-1 auto
  Attrs:
    @{0}: {"dma_mask":"0xffff"}
EOF
"$VFIOD" start "$C"
is mdev list -p teacher <<<"$C teacher edu-1 auto (defined)"
mdev stop -u "$C"
refused 'no instance' "$VFIOD" remove "$C"
"$VFIOD" undefine "$C"
is mdev list --defined -p teacher </dev/null

# The guest sees the inputs that the definition set; while it runs, its device stays.
capture lines "mdev/$A.sock" gpio
guest vm '
set -e
lspci -nnk | grep "Kernel driver in use: pci-idio-16"
gpioget -c gpiochip0 --numeric IIN0 IIN1 IIN2 IIN5 | grep -x "1 0 1 1"
echo "the guest has seen it"
is_on() { [ "$(gpioget -c gpiochip0 --numeric $1)" = 1 ]; }
wait_for is_on IIN15
' --socket "$WORK/lines.captured" &
guest=$!
said vm 'the guest has seen it'
refused 'Device or resource busy' mdev stop -u $A
echo 0x8000 >"$SYS/bus/mdev/devices/$A/inputs"
wait $guest
replay_captures

mdev stop -u $B
is mdev list <<<"$A lines gpio-16 auto (defined)"
test ! -e "$WORK/mdev/$B.sock"

# Killed: the definitions are there, auto instances run on the same sockets, others do not.
mdev define -u $B -p lines -t gpio-16
mdev start -u $B
echo '{' >"$WORK/definitions/lines/${B/1002/1003}"
touch -d '1 hour ago' "$WORK/definitions/lines/${B/1002/1003}"
kill -9 "$SERVER_PID"
wait "$SERVER_PID" || true
SERVER_PID=''
unmounted() { ! grep -qF " $SYS " /proc/mounts; }
wait_for 'the end of the view' unmounted
serve
is mdev list <<<"$A lines gpio-16 auto (defined)"
is cat "$SYS/bus/mdev/devices/$A/inputs" <<<0x00a5
"$VFIOD" probe "$WORK/mdev/$A.sock" | grep -i 494f
is mdev list --defined <<EOF
$A lines gpio-16 auto (active)
$B lines gpio-16 manual
EOF
logged 'damaged definition.*1003'
ls "$WORK/definitions/.vfiod/damaged/lines/${B/1002/1003}"

mdev stop -u $A
mdev undefine -u $A
mdev undefine -u $B
is mdev list </dev/null
is mdev list --defined </dev/null
stop_server
is ls "$SYS" </dev/null
