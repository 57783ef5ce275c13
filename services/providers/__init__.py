"""Speaks to models: one adapter per vendor behind ProviderService. It never retries, routes or bills."""
