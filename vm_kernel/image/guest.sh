#!/bin/sh
# Runs in a chroot of the guest's root while an image is built, called by build.py: installs the Python packages that
# lie in /mnt/wheels, makes the user, tries the result, and removes what a guest has no use for.
set -eu
site=/usr/local/lib/python3.11/dist-packages

echo "step: 0.05 making the user"
useradd --uid 1000 --user-group --create-home --home-dir /home/sandbox --shell /bin/bash sandbox

echo "step: 0.1 installing Python packages"
set -- /mnt/wheels/pip-*.whl
python3 -s "$1/pip" --quiet --no-cache-dir --disable-pip-version-check install --no-index --no-deps \
    --no-compile --break-system-packages --root-user-action=ignore /mnt/wheels/*.whl
python3 -s -m pip --disable-pip-version-check check
# Debian's guard against mixing pip with apt: here the user may install wheels of his own, into his home folder
rm -f /usr/lib/python3.11/EXTERNALLY-MANAGED
rm -rf $site/numpy/tests $site/numpy/*/tests $site/pandas/tests $site/matplotlib/tests

echo "step: 0.4 compiling Python packages"
# without a check of the source's date: all dates are the same in the image
python3 -s -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /usr/lib/python3.11 /usr/lib/python3 $site ||
    echo "some files do not compile, as some packages' templates do not"

echo "step: 0.7 trying it out"
# a fixed hash seed: matplotlib writes its list of fonts in the order of a set
setpriv --reuid sandbox --regid sandbox --clear-groups env HOME=/home/sandbox PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 \
    python3 -s /mnt/probe.py >/mnt/facts.json
dpkg-query --show --showformat '${Package} ${Version}\n' >/mnt/debian-packages

echo "step: 0.9 trimming"
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/* /var/lib/dpkg/*-old \
    /var/log/* /tmp/* /run/* /root/.cache /etc/resolv.conf /etc/.pwd.lock /etc/*-
mkdir -p /opt/vm-kernel /var/cache/apt/archives/partial /var/lib/apt/lists/partial
echo vm-sandbox >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 vm-sandbox\n::1 localhost\n' >/etc/hosts
: >/etc/machine-id
