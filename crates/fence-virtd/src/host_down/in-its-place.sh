#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs the file "body" beside the link that it was started by.
cd "${0%/*}" && exec /bin/sh ./body "$@"
