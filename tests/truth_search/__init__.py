# SPDX-License-Identifier: GPL-2.0-or-later
"""A search for untrue answers: hosts, hypervisors and daemons to which anything happens, asked all the while.

    world       hosts, their libvirtds and daemons, and what is wrong with them
    readings    what runs, read at the hypervisors and never from a daemon
    judge       whether an answer can be true: readings and what was done, nothing else
    steps       what may happen, drawn from a seed
    search      a run of steps in a world; command line, repetition and shrinking
"""
