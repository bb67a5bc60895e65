"""From a trained generator to the bundle: pieces exported once, assembled into one graph, checked for parity."""
