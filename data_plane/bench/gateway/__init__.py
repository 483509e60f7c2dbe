"""Measures a gateway, ours or another's: what it adds to a request, how much it carries, and what it costs.

Between stub replicas that answer at once and a load generator, all on this machine's loopback. Knows nothing of models.
"""
