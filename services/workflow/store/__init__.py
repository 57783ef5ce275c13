"""All persistence of the workflow service: a change of state is one transaction, with event and messages."""
