# SPDX-License-Identifier: GPL-2.0-or-later
"""Domains that may be at another host."""
