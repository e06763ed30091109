"""A Hugging Face checkpoint as files: headers, tokenizer, chat template, shapes, and a forward pass in float32.

A vocabulary for the chapters above; imports `machine` and what is below it. Without a door: take a module by its name.
"""
