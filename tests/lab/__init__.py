# SPDX-License-Identifier: GPL-2.0-or-later
"""The project's own lab: what every Python suite under tests/ builds on.

    net         hosts and guests as network namespaces on one bridge, nothing leaves the machine
    trace       what a node sent and received last
    wire        the fence_xvm protocol by hand, fake hosts and fake clients that can misbehave
    programs    which programs are under test, config files, daemons and agents as processes
    loads       what a client does that costs the daemon work or places, in processes beside the requests of others
    testdriver  domains of libvirt's test driver
    hypervisor  a libvirtd with QEMU domains; guest and initramfs, for those that boot a Linux
    corosync    machines with a real corosync; cpg_member, a member of its groups by hand
    rig         a site with such a hypervisor, daemons with audit files, cluster nodes that die
    endpoint    servers of others on a node: started, waited for, killed
    metrics     the daemon's metrics, read
    judged      answers that were not true, which fail a suite for good
    process     processes held by a pidfd, those below one, and such that stand still
    hanging     a disk whose writes hang
    fixtures    pytest fixtures of several suites

Python 3.11 standard library only. The suites run as root, because namespaces need it.
"""
