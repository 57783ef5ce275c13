"""One file per adapter; no vendor is named anywhere else but in services/formats."""
