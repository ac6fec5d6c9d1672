"""Evaluations: retrieval, reconstruction, captioning, question answering, drawing and perplexity on text."""
