"""Rules of identity, without I/O: what a credential is worth, who may give what to whom."""
