"""The conformance kit: judges any server of ProviderService from outside, by its address alone.

It asks for the capabilities first and skips what is not offered; it never guesses. One file per
group of checks; `kit.py` runs them, `command.py` is `omnihub provider check`.
"""
