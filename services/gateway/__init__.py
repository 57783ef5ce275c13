"""The HTTP facade: foreign wire formats in, RouterService out.

A pure client of the same rpcs everyone else can call. It authenticates, reads the few facts that
routing needs, and writes answers and errors in the caller's own format. It keeps no state.
"""
