"""Retrain: LoRA on chats, judged against the model in use; what is better is registered and packaged.

Imports every other chapter, and is imported by none.
"""
