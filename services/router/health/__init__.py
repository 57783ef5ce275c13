"""Who is worth asking: what was measured, and what replicas tell each other."""
