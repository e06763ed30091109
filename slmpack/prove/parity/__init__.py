"""Parity: tokenizer, chat template and end of turn of the package against transformers' own."""
