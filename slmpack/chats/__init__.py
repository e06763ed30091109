"""Chats as data: one chat, files of them, their check, and examples of token ids to train and measure on.

Imports `checkpoint` and `machine`; knows neither sources nor MLflow.

Door: chat.Chat, dataset.ChatData, dataset.DataPolicy, dataset.check_chats, lines.read_good_chats, parts.ChatParts,
parts.store_parts, examples.read_examples
"""
