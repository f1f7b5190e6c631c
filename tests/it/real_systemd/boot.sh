#!/bin/bash
# Boots systemd as PID 1 of a container that sees this machine's files; what it writes is lost, except
# below /out. Returns when it has powered off. Requires root and systemd-nspawn.
#
#     boot.sh UNITS OUT [FILE:PATH]...
#
# UNITS replaces /etc/systemd/system, and test.target in it is booted. Each FILE appears at PATH.
set -euo pipefail
units=$1 out=$2
shift 2
if [[ -z ${BOOT_NAMESPACE-} ]]; then
    export BOOT_NAMESPACE=1
    exec unshare --mount --propagation private "$0" "$units" "$out" "$@"
fi
files=()
for pair in "$@"; do files+=("--bind-ro=$pair"); done
root=$(mktemp -d) # systemd-nspawn refuses / itself
trap 'umount "$root" && rmdir "$root"' EXIT
mount --bind / "$root"
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --register=no --keep-unit \
    --directory="$root" --volatile=overlay --private-network \
    --bind="$out:/out" --bind="$units:/etc/systemd/system" "${files[@]}" \
    --boot -- --unit=test.target
