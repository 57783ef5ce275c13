"""Amounts and rating: a pure library, so that every process gets the same number. See docs/adr/0006."""
