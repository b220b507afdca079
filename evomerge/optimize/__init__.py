"""Ask and tell: what to try next, and the feasibility-first order in which trials are compared."""
