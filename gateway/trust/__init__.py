"""Keys and certificates, each with its own life. Shared vocabulary: collect signs, receive verifies, `ebbgate ca` certifies."""
