"""What travels between uploader and receiver besides frames: request targets and receipts. Pure vocabulary, no side."""
