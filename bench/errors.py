"""The one error of the harness."""


class BenchError(Exception):
    """A run that cannot give honest numbers; the message says why and what to do."""
