"""Jobs: takes them in, works them off, keeps what they make. It never asks a provider itself and never books."""
