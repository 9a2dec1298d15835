# SPDX-License-Identifier: GPL-2.0-or-later
"""A fence agent that notes what it may do: for the tests of what the daemon's programs have of the daemon's rights."""

METADATA = """<?xml version="1.0"?>
<resource-agent name="fence_spy" shortdesc="Notes what it may do"><longdesc>A test.</longdesc>
<parameters>
<parameter name="action" required="1"><content type="string" default="reboot"/><shortdesc lang="en">What</shortdesc></parameter>
<parameter name="plug" required="1"><content type="string"/><shortdesc lang="en">Which</shortdesc></parameter>
<parameter name="password" required="0"><content type="string"/><shortdesc lang="en">Secret</shortdesc></parameter>
</parameters>
<actions><action name="on"/><action name="off"/><action name="status"/><action name="monitor"/><action name="metadata"/></actions>
</resource-agent>
"""


def spy(notes, files):
    """Text of an agent that writes into the directory `notes`: `ACTION`, its sets of capabilities; `password`, what it was given;
    `read`, those of `files` that it can read. It is always on."""
    files = " ".join(str(it) for it in files)
    return f"""#!/bin/sh
action=reboot
[ "$1" = -o ] && action=$2
while read -r line; do
    case "$line" in
    action=*) action=${{line#action=}};;
    password=*) echo "${{line#password=}}" > {notes}/password;;
    esac
done
grep -E '^Cap(Prm|Eff|Bnd|Amb)' /proc/self/status > {notes}/$action
for it in {files}; do
    head -c 1 "$it" > /dev/null 2>&1 && echo "$it" >> {notes}/read
done
case $action in
metadata) cat <<'XML'
{METADATA}XML
;;
on|off|status|monitor) exit 0;;
*) exit 1;;
esac
"""
