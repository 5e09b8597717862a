"""Small real files of every format, made with fixed keys and times (`python -m tests.golden.make`), and a reader that shares no code."""
