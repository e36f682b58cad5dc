"""Corpora, tokenizers, the binary store and batching."""
