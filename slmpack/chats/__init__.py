"""Chats as data: one chat, files of them, their check, and examples of token ids to train and measure on.

Imports `checkpoint` and `machine`; knows neither sources nor MLflow.
"""
