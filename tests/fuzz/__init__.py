"""Every parser against bytes that are almost right: a documented answer or CorruptError, nothing else, memory bounded."""
