"""Foreign wire formats, one file each: a pure library that both ends of a request use.

`read_*` turns the format into the normalised model of omnihub.common.v1, `write_*` turns it back.
Nothing is lost either way: what has no field travels as raw JSON. See docs/adr/0006.
"""
