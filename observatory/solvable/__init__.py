"""Exactly solvable references: closed forms, and the ensembles that must reproduce them."""
