"""A GPU that no release knows."""

from __future__ import annotations

#: A GPU of ten slices: no such thing exists.
FUTURE = """\
format = 1
name = "NVIDIA X200 200GB"
source = "assumed"
memory_mib = 204800
mode_needs_reset = false

[[profiles]]
id = 40
name = "1g.20gb"
slices = 1
count = 8
placements = [[0,1],[1,1],[2,1],[3,1],[4,1],[5,1],[6,1],[7,1],[8,1],[9,1]]
memory_mib = 20096

[[profiles]]
id = 41
name = "2g.40gb"
slices = 2
count = 5
placements = [[0,2],[2,2],[4,2],[6,2],[8,2]]

[[profiles]]
id = 42
name = "5g.100gb"
slices = 5
count = 2
placements = [[0,5],[5,5]]

[[profiles]]
id = 43
name = "10g.200gb"
slices = 10
count = 1
placements = [[0,10]]
"""
