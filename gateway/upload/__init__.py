"""OT process 2: reads ring/ read-only, sole writer of upload/. Side: OT; user: ebbgate-upload. Holds no data key, decodes no payload."""
