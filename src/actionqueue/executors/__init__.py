"""How code is run, stopped and, where possible, killed. Executors know nothing of states, retries or the log."""
