# Makes the lab host's root: $1 tarball of the base system, $2 root, $3 folder to be seen as /mnt, with the kernel's
# modules and the Python packages. Runs in a mount namespace, so nothing needs to be unmounted.
set -eu
mkdir "$2"
tar --extract --file "$1" --directory "$2" --numeric-owner --exclude "./dev/*"
mkdir -p "$2/usr/lib/modules"
cp -r "$3/modules" "$2/usr/lib/modules/$(cat "$3/kernel-version")"
mount --rbind /proc "$2/proc"
mount -t tmpfs -o mode=755 dev "$2/dev"
for node in null zero urandom; do : >"$2/dev/$node"; mount --bind "/dev/$node" "$2/dev/$node"; done
mount --bind "$3" "$2/mnt"
exec chroot "$2" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    LANG=C.UTF-8 sh -eu -c '
    depmod "$(cat /mnt/kernel-version)"
    getent group kvm >/dev/null || groupadd --system kvm
    useradd --uid 1000 --user-group --create-home --groups kvm --shell /bin/bash lab
    useradd --uid 1001 --user-group --create-home --groups kvm --shell /bin/bash neighbour
    echo "lab ALL=(ALL) NOPASSWD: ALL" >/etc/sudoers.d/lab
    python3 -m venv --system-site-packages /opt/venv
    /opt/venv/bin/python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps /mnt/wheels/*
    rm -rf /var/lib/apt /var/cache/* /var/log/* /usr/share/doc /usr/share/man
    mkdir -p /var/log /var/cache
'
