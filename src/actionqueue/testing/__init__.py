"""For tests: the real engine on virtual time and a store in memory that can fail."""
