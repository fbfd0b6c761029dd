#!/bin/busybox sh
# The guest's first process, in the initramfs: load drivers, put the read-only root under a writable overlay in
# memory, hand over to the agent. initramfs.py puts this file, busybox and the modules together.
bb=/bin/busybox

fail() {
    echo "vm-kernel: init failed: $*" >/dev/console
    $bb poweroff -f
    while :; do $bb sleep 60; done
}

$bb mount -t proc proc /proc || fail "mount /proc"
$bb mount -t sysfs sysfs /sys || fail "mount /sys"
$bb mount -t devtmpfs devtmpfs /dev || fail "mount /dev"

# in the order of their dependencies
while read -r module; do
    $bb insmod "/modules/$module" || fail "load the module $module"
done </modules/order

tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -gt 200 ] && fail "there is no disk /dev/vda"
    $bb sleep 0.05
done

$bb mount -t erofs -o ro /dev/vda /lower || fail "mount the root file system /dev/vda"
$bb mount -t tmpfs -o size=75%,mode=755 overlay /upper || fail "mount a tmpfs"
$bb mkdir /upper/files /upper/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /newroot ||
    fail "mount the overlay"

[ -d /agent/guest_agent ] || fail "the initramfs has no guest agent"
$bb cp -r /agent/. /newroot/opt/vm-kernel/ || fail "copy the guest agent"

for each in proc sys dev; do
    $bb mount --move /$each /newroot/$each || fail "move /$each"
done

exec $bb env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=linux \
    PYTHONPATH=/opt/vm-kernel PYTHONDONTWRITEBYTECODE=1 \
    $bb switch_root /newroot /usr/bin/python3 -s -m guest_agent.agent
fail "start the guest agent"
