"""Signing: keys, which of them may sign which models, and signatures over all files of a model.

The signatures are those of OpenSSF Model Signing, made and checked by its library. Imports `machine` and below; knows
neither MLflow nor what a package is.

Door: keys.new_key, keys.read_key, policy.find_policy, signature.sign_files, signature.check_files
"""
