"""Which model, where, and why."""
