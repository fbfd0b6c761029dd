#!/bin/bash
# Process 1 of the lab host: sets the machine up as a Debian host with KVM would be, runs the payload's command as an
# ordinary user, and puts what is then in /results on the last disk.
set -u
say() { echo "lab: $*"; }

mkdir -p /dev/pts /dev/shm /results
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# what systemd gives a user who logs in
mkdir -p /run/systemd/system /sys/fs/cgroup/lab/session
echo "+cpu +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
echo "+cpu +memory +pids" >/sys/fs/cgroup/lab/cgroup.subtree_control
chown -R lab: /sys/fs/cgroup/lab
ln -sf /proc/self/fd /dev/fd
hostname lab-host
echo "127.0.0.1 localhost lab-host" >/etc/hosts
ip link set lo up
chmod 1777 /results

# as a module's alias and udev's rules do it on a real host
echo "options kvm halt_poll_ns=0" >/etc/modprobe.d/kvm.conf  # polling costs more than it saves, emulated
modprobe kvm_amd && modprobe vhost_vsock || say "the modules cannot be loaded"
chgrp kvm /dev/kvm /dev/vhost-vsock
chmod 660 /dev/kvm /dev/vhost-vsock

# imports that take minutes here, and say nothing about KVM
mkdir -p /etc/jupyter
echo "c.PoolConfig.preload = []" >/etc/jupyter/vm_kernel_config.py

# our own code, as an editable install has it
site=$(echo /opt/venv/lib/python3.*/site-packages)
echo /lab/project >"$site/vm-kernel.pth"
printf '#!/opt/venv/bin/python3\nimport sys\nfrom vm_kernel.cli import main\nsys.exit(main())\n' >/opt/venv/bin/vm-kernel
chmod 755 /opt/venv/bin/vm-kernel
mkdir -m 700 /run/lab && chown lab: /run/lab
chown -R lab: /lab/project

mkdir -p /golden
mount -t ext4 /dev/vde /golden 2>/dev/null || { mke2fs -q -t ext4 /dev/vde && mount -t ext4 /dev/vde /golden; } ||
    say "golden snapshots are not kept"
chown lab: /golden
# the newest three: there is room for few, and most are of code that was changed since
ls -t /golden | grep -v lost+found | tail -n +4 | while read -r old; do rm -rf "/golden/$old"; done

stty -F /dev/ttyS1 raw -echo
chmod 666 /dev/ttyS1
while sleep 10; do say "alive"; done &

say "the machine is up"
echo $$ >/sys/fs/cgroup/lab/session/cgroup.procs
runuser -u lab -- env -i HOME=/home/lab USER=lab LANG=C.UTF-8 PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin \
    TERM=dumb COLUMNS=120 VM_KERNEL_LAB=1 VM_KERNEL_IMAGES=/images VM_KERNEL_GOLDEN=/golden PYTHONUNBUFFERED=1 XDG_RUNTIME_DIR=/run/lab \
    bash /lab/command.sh
echo $? >/results/status
say "the command ended with status $(cat /results/status)"
ps -eo user,pid,ppid,stat,args | grep -v '\]$' >/results/processes-left
dmesg >/results/dmesg
umount /golden
tar -C /results -cf /dev/vdd .
sync
echo o >/proc/sysrq-trigger
sleep 60
