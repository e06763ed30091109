"""Retrain: LoRA on chats, judged against the model in use; what is better is registered and packaged.

Imports every other chapter, and is imported by none.

Door: training.settings.TrainSettings, training.train.train_adapter, evaluate.RetrainPolicy,
evaluate.RetrainOutcome, evaluate.judge_tuned, evaluate.retrain_key
"""
