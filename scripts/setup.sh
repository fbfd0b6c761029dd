#!/bin/bash
# Set up everything that this checkout needs on Debian 12 or 13: packages, Python environment, guest image, kernelspec.
#
#   scripts/setup.sh [EXTRA...]      EXTRA: lab, test, dev (the optional dependencies of pyproject.toml)
#
# What is there already is left alone, so a second run takes a second. sudo is used for Debian packages (and once for
# the ranges of uids that a rootless image build needs), nothing else. What was done, and how long it took, is in
# build/setup-times.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    python3 python3-venv python3-dev gcc pkg-config libvirt-dev                       # to build libvirt-python
    qemu-system-x86 libvirt-daemon libvirt-daemon-driver-qemu                         # to run VMs
    mmdebstrap erofs-utils uidmap dpkg tar util-linux ca-certificates                 # to build the guest image
)
test_packages=(
    chromium fonts-dejavu-core                                                        # to see JupyterLab as a person does
    systemd                                                                           # to check units
)
service_user=vm-kernel
venv=.venv
# Debian's own: the unprivileged user of a pool service that root starts must be able to read it
python=/usr/bin/python3

main() {
    mkdir -p build
    : >build/setup-times
    [[ " $* " != *" test "* ]] || packages+=("${test_packages[@]}")
    stage "Debian packages" missing_packages install_packages
    if [ "$(id -u)" = 0 ]; then
        stage "service user $service_user" no_service_user make_service_user
    else
        stage "uid ranges for $(id -un)" no_uid_range make_uid_range
    fi
    stage "Python environment" stale_environment make_environment "$@"
    stage "guest image" stale_image "$venv/bin/vm-kernel" image build
    stage "kernelspec" stale_kernelspec install_kernelspec
}

# stage NAME WANTED COMMAND [ARG...]: run COMMAND if WANTED says so (status 0), and note how long it took
stage() {
    local name=$1 wanted=$2 begin=$EPOCHREALTIME note="was there"
    shift 2
    if "$wanted" "${@:2}"; then
        echo "== $name"
        note=done
        "$@"
    fi
    local took=$((${EPOCHREALTIME/./} - ${begin/./}))
    printf '%-28s %4d.%d s  %s\n' "$name" $((took / 1000000)) $((took / 100000 % 10)) "$note" >>build/setup-times
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "There is no sudo here. As root, run: $*" >&2
        exit 1
    fi
}

missing_packages() {
    missing=()
    local package
    for package in "${packages[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ]
}

install_packages() {
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

no_service_user() {
    ! getent passwd "$service_user" >/dev/null
}

make_service_user() {
    useradd --system --home-dir /var/lib/vm-kernel --no-create-home --shell /usr/sbin/nologin "$service_user"
}

no_uid_range() {
    local file
    for file in /etc/subuid /etc/subgid; do
        grep -Eq "^($(id -un)|$(id -u)):" "$file" 2>/dev/null || return 0
    done
    return 1
}

make_uid_range() {
    # the first range of 65536 that begins above all that are taken
    local first
    first=$(cat /etc/subuid /etc/subgid 2>/dev/null | awk -F: '{ end = $2 + $3; if (end > max) max = end } END { print max + 0 }')
    [ "$first" -ge 100000 ] || first=100000
    as_root usermod --add-subuids "$first-$((first + 65535))" --add-subgids "$first-$((first + 65535))" "$(id -un)"
}

# one stamp an extra, newer than pyproject.toml once it is installed
stale_environment() {
    [ "$(readlink -f "$venv/bin/python3" 2>/dev/null)" = "$(readlink -f "$python")" ] || return 0
    local extra
    for extra in base "$@"; do
        [ "$venv/.installed-$extra" -nt pyproject.toml ] || return 0
    done
    return 1
}

make_environment() {
    if [ "$(readlink -f "$venv/bin/python3" 2>/dev/null)" != "$(readlink -f "$python")" ]; then
        "$python" -m venv --clear "$venv"
    fi
    local IFS=, extra
    "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check --editable ".${*:+[$*]}"
    for extra in base "$@"; do
        touch "$venv/.installed-$extra"
    done
}

# missing, or one of ours (nothing of the user's own in it) that lacks packages which were added since, or is older than
# what a first completion finds parsed in it
stale_image() {
    ! "$venv/bin/python3" - 2>/dev/null <<'END'
from vm_kernel.image import store, wheels

manifest = store.open_image().manifest
wanted, there = ({pin.partition("==")[0] for pin in pins} for pins in (wheels.locked(), manifest.requirements))
old = manifest.created_at < "2026-11-30" or not wanted <= there
raise SystemExit(old and there <= wanted and not manifest.apt)
END
}

stale_kernelspec() {
    local installed=$venv/share/jupyter/kernels/vm-sandbox/kernel.json
    [ ! -e "$installed" ] || [ -n "$(find kernelspec vm_kernel/kernel/spec.py -newer "$installed" -print -quit)" ]
}

install_kernelspec() {
    "$venv/bin/vm-kernel" install --sys-prefix
}

main "$@"
