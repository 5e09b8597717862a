"""IT process 3: takes frames, verifies, lands them; sole writer of landing/. Side: IT; user: ebbgate-receive. Decodes no payload."""
