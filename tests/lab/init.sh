#!/bin/busybox sh
# The lab host's first process, in its initramfs: drivers, a writable overlay over the read-only root, and the payload
# (see host.py), of which host.sh goes on. Disks: vda root, vdb payload, vdc guest images, vdd results, vde golden snapshots.
bb=/bin/busybox

fail() {
    echo "lab: init failed: $*" >/dev/console
    $bb poweroff -f
    while :; do $bb sleep 60; done
}

$bb mount -t proc proc /proc && $bb mount -t sysfs sysfs /sys && $bb mount -t devtmpfs devtmpfs /dev || fail "mount"
while read -r module; do
    $bb insmod "/modules/$module" || fail "load the module $module"
done </modules/order

tries=0
until [ -b /dev/vde ]; do
    tries=$((tries + 1))
    [ $tries -gt 400 ] && fail "there is no disk /dev/vde"
    $bb sleep 0.05
done

$bb mount -t erofs -o ro /dev/vda /lower || fail "mount the root file system"
$bb mount -t tmpfs -o size=75%,mode=755 overlay /upper || fail "mount a tmpfs"
$bb mkdir /upper/files /upper/work
$bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /newroot || fail "the overlay"
$bb mkdir -p /newroot/lab /newroot/images
$bb tar -xf /dev/vdb -C /newroot/lab || fail "unpack the payload"
$bb mount -t erofs -o ro /dev/vdc /newroot/images || fail "mount the guest images"

for each in proc sys dev; do
    $bb mount --move /$each /newroot/$each || fail "move /$each"
done
exec $bb env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb \
    $bb switch_root /newroot /bin/bash /lab/host.sh
fail "start the payload"
