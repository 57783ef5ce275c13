"""Asking providers until one answers, and what becomes of a stream."""
