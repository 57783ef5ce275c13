"""Jobs and durable workflows. Only the contract exists so far: every call says NOT_IMPLEMENTED."""
