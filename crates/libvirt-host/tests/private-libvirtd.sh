#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# private-libvirtd.sh DIR: a libvirtd of its own, with its socket in DIR/sock/libvirt-sock, for tests.
#
# Start it in namespaces of its own, so that it neither touches nor sees the system's libvirtd and takes its virtual
# machines with it when it ends:
#     unshare --mount --net --ipc --pid --fork --kill-child private-libvirtd.sh DIR
set -e
dir=$1
mkdir -p "$dir"/sock "$dir"/log
mount --make-rprivate /
mount -t proc proc /proc
for place in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt/qemu; do
    mount -t tmpfs private "$place"
done
mkdir -p /run/libvirt /run/lock /etc/libvirt/qemu/networks
ip link set lo up
cat > "$dir/libvirtd.conf" <<END
unix_sock_dir = "$dir/sock"
unix_sock_group = "root"
auth_unix_rw = "none"
auth_unix_ro = "none"
log_outputs = "3:file:$dir/log/libvirtd.log"
END
# There is no virtlogd in here; and the machines run as root, since DIR may be closed to others.
cat > "$dir/qemu.conf" <<END
stdio_handler = "file"
user = "root"
group = "root"
security_driver = "none"
namespaces = []
END
mount --bind "$dir/qemu.conf" /etc/libvirt/qemu.conf
/usr/sbin/libvirtd -f "$dir/libvirtd.conf" -p "$dir/libvirtd.pid" &
# This shell is process 1 of the namespace: it has to reap the virtual machines, so it stays when libvirtd ends.
wait
exec sleep infinity
