"""How to train: what a form asks, with bounds and defaults."""

from typing import Any

from pydantic import Field

from slmpack.records import Record


class TrainSettings(Record):
    """How a model is trained on chats.

    The defaults are careful. SmolLM2-135M on 224 chats of one kind: the perplexity of held-out answers fell from 32.7
    to 1.12, that of the general text rose from 21.1 to 26.2; with 2 epochs at 5e-4 they were 1.01 and 34.8, and what
    had been 19 right answers of 28 were 28.
    """

    epochs: float = Field(3.0, gt=0, le=100, description="How often each chat is read; 0.5 is half of them, once.")
    rank: int = Field(
        16, ge=0, le=256, description="Of the LoRA adapter; 0 trains all weights, which takes several times the memory."
    )
    learning_rate: float = Field(
        2e-4, gt=0, description="The highest one: 2e-4 to 5e-4 for an adapter (it forgets faster, too), 2e-5 for all."
    )
    batch_size: int = Field(
        8, ge=1, le=256, description="Chats that are learnt from at a time; a CPU reads them in parts that fit."
    )
    batches_per_step: int = Field(
        1, ge=1, le=256, description="Batches before the weights change: 8 of 1 learn as 1 of 8."
    )
    max_length: int = Field(1024, ge=16, le=1_000_000, description="Tokens; longer chats are left out, and counted.")
    seed: int = Field(0, ge=0, lt=2**32, description="The same seed on the same machine gives the same weights.")
    save_minutes: float = Field(
        2.0, ge=0, le=1440, description="Between two checkpoints: the work that a killed run loses; 0 is every step."
    )

    def learnt_by(self) -> dict[str, Any]:
        """Return what the weights depend on: how often they are saved on the way is not of it."""
        return self.model_dump(exclude={"save_minutes"})
