#!/bin/bash
# Process 1 of a pretend host (tests/hosts.py starts it in fresh network, mount, PID, UTS and IPC namespaces): makes the host's own
# view of the machine, starts sshd where there is a configuration for it, then reaps orphans until it is killed or the test ends.
#
#   host_init.sh NAME ADDRESS DISK STORAGE KEEP...     STORAGE is empty where the host has no shared folder
set -eu
name=$1 address=$2 disk=$3 storage=$4
shift 4

# /proc is still the machine's: this is the pid by which the test knows this process. It answers when the cable is in.
read -r pid _ </proc/self/stat
echo "$pid"
read -r _
hostname "$name"
mount --make-rprivate /
ip link set lo up
ip addr add "$address/24" dev eth0
ip link set eth0 up

# Everything that outlives the hiding of the machine's own folders is bound below a stage first, which then becomes /srv.
mkdir -p "$disk/stage"
mount -t tmpfs -o mode=755 srv "$disk/stage"
mkdir "$disk/stage/disk" "$disk/stage/keep"
mount --bind "$disk" "$disk/stage/disk"
kept=0
for path in "$@"; do
    mkdir "$disk/stage/keep/$kept"
    mount --bind "$path" "$disk/stage/keep/$kept"
    mount -o remount,ro,bind "$disk/stage/keep/$kept"
    kept=$((kept + 1))
done
if [ -n "$storage" ]; then
    mkdir "$disk/stage/storage"
    mount --bind "$storage" "$disk/stage/storage"
fi
mount --move "$disk/stage" /srv

# A host writes to its own disk, its own memory and the shared folder, and to nothing else of this machine.
mount -o remount,ro,bind /
mount --bind /srv/disk/root /root
mount --bind /srv/disk/tmp /tmp
mount --bind /srv/disk/etc/hosts /etc/hosts
mount --bind /srv/disk/etc/resolv.conf /etc/resolv.conf
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o size=1g,mode=1777 shm /dev/shm
mount -t proc proc /proc
kept=0
for path in "$@"; do
    mkdir -p "$path"
    mount --bind "/srv/keep/$kept" "$path"
    kept=$((kept + 1))
done

if [ -e /srv/disk/etc/sshd_config ]; then
    mkdir -p /run/sshd
    /usr/sbin/sshd -f /srv/disk/etc/sshd_config -E /srv/disk/console.log </dev/null
fi
echo ready
# Bash reaps orphans while it reads. The read ends when the test's process does, and with process 1 ends the host.
cd /
read -r _ || true
