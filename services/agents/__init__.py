"""Agents and their tools. Only the contract exists so far: every call says NOT_IMPLEMENTED."""
