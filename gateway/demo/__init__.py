"""A simulated plant and a switchable link, for `ebbgate demo` and the tests. Listens and accepts writes: no OT package ships it."""
