"""Billing: accounts, the double-entry ledger, holds, leases, usage events and prices.

Owns who has how many credits and what a model costs. Never calls a provider, never decides which model
answers, never sees a prompt.
"""
