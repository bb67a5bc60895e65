"""The stage `tokenize`: item embeddings, balanced residual k-means, semantic IDs without collisions, and a report."""

from model_export.tokenizer.assignment import Assignment, assign_catalog, plain_residual_kmeans
from model_export.tokenizer.config import TokenizerConfig
from model_export.tokenizer.embeddings import ItemEmbeddings, embed_items
from model_export.tokenizer.stage import tokenize
from model_export.tokenizer.tokenization import Tokenization, max_branch

__all__ = [
    "Assignment",
    "ItemEmbeddings",
    "Tokenization",
    "TokenizerConfig",
    "assign_catalog",
    "embed_items",
    "max_branch",
    "plain_residual_kmeans",
    "tokenize",
]
