"""The harness: every model gets the same trials; the best of each is refitted with several seeds and compared."""
