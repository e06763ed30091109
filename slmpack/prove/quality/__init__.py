"""Quality: the package's logits against the source's on text, chats and greedy answers."""
