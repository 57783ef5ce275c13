"""Rules without I/O: what a provider's failure means, and what an unreported usage comes to."""
