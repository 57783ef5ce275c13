"""Answers that their providers keep."""
