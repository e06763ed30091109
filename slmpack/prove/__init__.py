"""Prove: smoke inference, measured quality, and validation of a logged model against its source.

The three know nothing of each other. Imports `log` and below; knows nothing of versions.

Door: smoke.smoke_test, measure.measure_quality, validate.validate_model, quality.text.read_text,
quality.chat_loss.chat_perplexity
"""
