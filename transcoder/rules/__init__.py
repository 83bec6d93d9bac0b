"""The rules that select the active features of a row: one module a rule, found by the name in ``registry``."""
