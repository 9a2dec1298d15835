# SPDX-License-Identifier: GPL-2.0-or-later
"""The packages: what is in them, and what becomes of a machine that installs them."""
