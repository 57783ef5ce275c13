"""Pure rules of money: no input or output, no clock, no database."""
