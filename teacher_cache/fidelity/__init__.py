"""How true a cache is: what it gives back against what its teacher, run anew, says."""

NUM_POSITIONS = 16_384
"""Masked positions that are compared unless another number is asked for."""
