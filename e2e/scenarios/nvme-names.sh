# Names under which Linux's users know disks, /dev/disk/by-id, are the same for a guest after each restart of the daemon:
# it ends or is killed, the images have moved with what is kept beside them and have grown, the sockets are others, and
# the devices stand in another order. VFIOD_RESTARTS is how often (1).
. "$(dirname "$0")/../scenario.sh"
mkdir "$WORK/disks.0"
# Which image a disk has is told by its size: so many times 32 MiB, whatever it grows by.
truncate -s 8M "$WORK/disks.0/one.img"
truncate -s 40M "$WORK/disks.0/more.img"
truncate -s 72M "$WORK/disks.0/two.img"
"$HARNESS_DIR/build-initramfs.sh" --output "$WORK/initramfs" --only --module nvme --module nvme-core

device() { # NAME ROUND OTHER-FILES
    cat <<EOF
[device.$1]
model = "nvme"
socket = { path = "$WORK/$1.$2.sock" }
options = { file = "$WORK/disks.$2/$1.img", files = [$3] }
EOF
}

# What systemd makes the links of, in 60-persistent-storage.rules: nvme-WWID and nvme-MODEL_SERIAL_NSID.
GUEST='
modprobe nvme
are_there() { [ "$(ls -d /sys/block/nvme*n* | wc -l)" = 3 ]; }
wait_for are_there
for disk in /sys/block/nvme*n*; do
    wait_for test -b /dev/${disk##*/}
    of=$(cat $disk/device/model)_$(cat $disk/device/serial)_$(cat $disk/nsid)
    image=$(($(cat $disk/size) / 65536))
    echo "image $image: nvme-$(cat $disk/wwid)"
    echo "image $image: nvme-$(echo $of | tr -s " " _)"
    echo "image $image: nguid $(cat $disk/nguid), uuid $(cat $disk/uuid)"
done
'
links() { tr -d '\r' <"$WORK/vm.out" | grep '^image ' | sort; }

for round in $(seq 0 "${VFIOD_RESTARTS:-1}"); do
    one=$(device one "$round" "\"$WORK/disks.$round/more.img\"") two=$(device two "$round" '')
    first=one second=two
    [ $((round % 2)) = 0 ] || first=two second=one
    start_server "${!first}
${!second}" one.$round.sock two.$round.sock
    guest vm "$GUEST" --initramfs "$WORK/initramfs" --socket "$WORK/$first.$round.sock" --socket "$WORK/$second.$round.sock"
    [ "$round" != 0 ] || links >"$WORK/links"
    links | diff "$WORK/links" -
    if [ $((round % 2)) = 0 ]; then
        kill -9 "$SERVER_PID"
        wait "$SERVER_PID" || true
        SERVER_PID=''
    else
        stop_server
    fi
    mv "$WORK/disks.$round" "$WORK/disks.$((round + 1))"
    truncate -s +512K "$WORK/disks.$((round + 1))"/*.img
done
cat "$WORK/links"
# Three namespaces, and no name twice.
[ "$(cut -d : -f 2 "$WORK/links" | sort -u | wc -l)" = 9 ]
