"""Saved students → folders that others take: Hugging Face, ONNX, int8, sentence embeddings, a model card, the hub."""
