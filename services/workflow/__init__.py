"""Jobs: takes them in, works them off, keeps what they make. It asks no provider itself and books nothing."""
