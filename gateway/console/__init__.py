"""IT process 5: read-only pages on the loopback; writes nothing. Side: IT; user: ebbgate-console."""
