"""Texts and chats that a tokenizer and a chat template could get wrong, from what the two say themselves."""
