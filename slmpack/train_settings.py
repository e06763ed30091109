"""How to train: what a form asks, with bounds and defaults."""

from pydantic import Field

from slmpack.records import Record


class TrainSettings(Record):
    """How a model is trained on chats."""

    epochs: float = Field(2.0, gt=0, le=100, description="How often each chat is read; 0.5 is half of them, once.")
    rank: int = Field(
        16, ge=0, le=256, description="Of the LoRA adapter; 0 trains all weights, which takes several times the memory."
    )
    learning_rate: float = Field(
        5e-4, gt=0, description="The highest one; about 5e-4 for an adapter, 2e-5 for all weights."
    )  # fmt: skip
    batch_size: int = Field(8, ge=1, le=256, description="Chats that are read at a time; fewer take less memory.")
    batches_per_step: int = Field(
        1, ge=1, le=256, description="Batches before the weights change: 8 of 1 learn as 1 of 8, in less memory."
    )
    max_length: int = Field(
        1024, ge=16, le=1_000_000, description="Tokens; longer chats are left out, and counted."
    )  # fmt: skip
    seed: int = Field(0, ge=0, lt=2**32, description="The same seed on the same machine gives the same weights.")
