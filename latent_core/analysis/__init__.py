"""Pure functions on tensors and traces; the formula of each stands in its docstring."""
