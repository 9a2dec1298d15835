# SPDX-License-Identifier: GPL-2.0-or-later
"""The project's own lab: what every Python suite under tests/ builds on.

    net         hosts and guests as network namespaces on one bridge, nothing leaves the machine
    wire        the fence_xvm protocol by hand, fake hosts and fake clients that can misbehave
    programs    which programs are under test, config files, daemons and agents as processes
    testdriver  domains of libvirt's test driver

Python 3.11 standard library only. The suites run as root, because namespaces need it.
"""
