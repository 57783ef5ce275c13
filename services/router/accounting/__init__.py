"""What a request may cost, what it did, and the journal that says so."""
