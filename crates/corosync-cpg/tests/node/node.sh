#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs a program on a machine of its own, as far as corosync can tell: network, mounts, processes, shared memory. What it mounts
# nobody else sees, and nothing that it starts outlives it.
#   node.sh PROGRAM [ARG…]
set -eu
if [ "${NODE_INSIDE:-}" = "" ]; then
    export NODE_INSIDE=1
    exec unshare --net --mount --propagation=private --pid --ipc --uts --fork --kill-child --mount-proc "$0" "$@"
fi
ip link set lo up
hostname alpha
private() { mount -t tmpfs -o "mode=$2" node "$1"; }
private /dev/shm 1777
private /run 755
private /var/lib/corosync 755
private /etc/corosync 755
private /var/log 755
private /var/lib/pacemaker 755
echo "127.0.0.1 localhost
10.255.255.1 elsewhere" >/run/hosts
mount --bind /run/hosts /etc/hosts
mkdir -p /run/corosync /run/lock /etc/corosync/uidgid.d /var/log/corosync
# For tests that start Pacemaker, where it is installed.
if id -u hacluster >/dev/null 2>&1; then
    install -d -o hacluster -g haclient -m 770 /run/crm /var/log/pacemaker
    install -d -o hacluster -g haclient -m 750 /var/lib/pacemaker /var/lib/pacemaker/cib /var/lib/pacemaker/pengine
fi
# Not exec: the first process of a PID namespace gets no signal that it has no handler for.
"$@"
