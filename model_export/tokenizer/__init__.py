"""The stage `tokenize`: item embeddings, balanced residual k-means, semantic IDs without collisions, and a report."""
