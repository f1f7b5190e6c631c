#!/bin/bash
# Runs a program as a container does: as PID 1, as a user without privileges, with a read-only root, a
# read-only /proc/sys, no /dev/shm and no name service. Requires root, and namespaces made by `unshare
# --mount --pid --ipc --fork`.
#
#     run.sh ROOT USER DIRECTORIES COMMAND...
#
# Each of DIRECTORIES, which are separated by colons, is an empty directory in memory.
set -euo pipefail
root=$1 user=$2 directories=$3
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -o remount,ro "$root/dev"
IFS=: read -ra directories <<< "$directories"
for directory in "${directories[@]}"; do
    mount -t tmpfs -o "mode=700,uid=$user,gid=$user" memory "$root$directory"
done
mount -o remount,bind,ro "$root"
cd "$root"
mount --move . /
exec env -i setpriv --no-new-privs "$(command -v chroot)" --userspec="$user:$user" --groups="$user" . "$@"
