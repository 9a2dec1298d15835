# SPDX-License-Identifier: GPL-2.0-or-later
"""One survivor, late proof, same work once, the owner answers: the rules that several requests are about."""
