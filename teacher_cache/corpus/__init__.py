"""Corpus files, local or in any fsspec store, to documents, to token sequences. Everything streams."""
