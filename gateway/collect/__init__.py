"""OT process 1: reads the sources, sole writer of ring/ and collect/. Side: OT; user: ebbgate-collect."""
