# SPDX-License-Identifier: GPL-2.0-or-later
"""`fence_virtd -c` beside the reference, script by script."""
