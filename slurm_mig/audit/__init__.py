"""What can be said from ledgers, Slurm's accounting and logs, once they are read.

`archive`, `archiving`, `spool` and `paint` read and write; the rest is pure.

Times are seconds since the epoch. Spans are half-open: what ends at t and what
begins at t do not overlap.
"""
