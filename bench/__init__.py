"""Benchmarks of the whole request path: `python -m bench`. README.md says what is measured and how."""
