"""A GGUF file as a checkpoint: header, metadata, tensors, tokenizer. Its code is part of a snapshot's key."""
