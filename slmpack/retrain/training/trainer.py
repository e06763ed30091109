"""Training itself, in a process of its own: transformers' Trainer, and peft's adapter beside the model.

    chats --tokenizer, chat template--> examples --+
    checkpoint --float32--> model -+- rank > 0: LoRA on every matrix of the layers
                                   +- rank 0: all its weights --Trainer--> tuned/adapter or tuned/model.safetensors

Weights are trained in float32: on a CPU all arithmetic is; on a GPU that knows bfloat16 the forward pass is in that,
and a base in bfloat16 stays in it under an adapter. On a CPU without the memory for float32 the base under an adapter
is loaded in bfloat16, which rounds more, and is slower on a CPU that does not know it. All weights in bfloat16 are not
trained: a step is often smaller than bfloat16's.

One seed decides the order of the chats and the adapter's beginning, and torch uses algorithms that give the same
sums, so a machine with the same number of threads gives the same weights again.
"""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmpack.chats.examples import IGNORED, Examples, read_examples
from slmpack.checkpoint.sizes import sizes_of
from slmpack.machine.forks import TORCH, forked_with
from slmpack.machine.memory import available_bytes
from slmpack.records import Record
from slmpack.retrain.training.checkpoints import KEPT, no_room
from slmpack.retrain.training.memory import Plan, chats_at_a_time, choose_plan, give_large_blocks_back
from slmpack.retrain.training.settings import TrainSettings
from slmpack.retrain.training.watch import watch_steps

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

TUNED, ADAPTER = "tuned", "adapter"
PRECISION = "precision.txt"  # of the base, beside the checkpoints: a run that goes on has the same
WARM_UP = 0.05  # of all steps
LARGEST_GRADIENT = 1.0  # norm; transformers' own


class TrainRequest(Record):
    """What the training's process is to do.

    Attributes:
        checkpoint: the folder of the base.
        dtype: torch's name of the precision that the base's weights are in.
        base_name: what the adapter calls its base, and `base_revision`.
        max_length: tokens of the longest example.
        folder: see `checkpoints`.
        resume: the checkpoint in it to go on from.
        save_seconds: a checkpoint is written after so long.
        plan: how the memory is used; None: chosen by what is free.
    """

    checkpoint: Path
    dtype: str
    base_name: str
    base_revision: str
    chats: Path
    settings: TrainSettings
    max_length: int
    folder: Path
    resume: Path | None
    save_seconds: float
    plan: Plan | None = None


class TrainResult(Record):
    """What came of it.

    Attributes:
        device: `cpu` or the GPU's name.
        dtype: of the base's weights while it was trained.
        recomputes: whether layers were computed again on the way back (gradient checkpointing).
        trained_parameters: how many weights were trained.
        examples: what was read in an epoch.
        left_out: examples that were too long.
        learnt_tokens: tokens of answers in an epoch.
        longest: tokens of the longest example.
    """

    device: str
    dtype: str
    recomputes: bool
    trained_parameters: int
    examples: int
    left_out: int
    learnt_tokens: int
    longest: int


@forked_with(*TORCH, "transformers.trainer")
def run_training(request: TrainRequest) -> TrainResult:
    """Run in a child: train, and write what came of it to `tuned/`.

    Raises:
        TrainError: a loss or a gradient that is not finite, chats that cannot be read, or too little memory.
        WorkspaceError: no room for a checkpoint.
    """
    give_large_blocks_back()
    from safetensors import SafetensorError

    try:
        return _train(request)
    except (OSError, RuntimeError, SafetensorError) as error:
        if no_space := no_room(error, request.folder):
            raise no_space from error
        raise


def _train(request: TrainRequest) -> TrainResult:
    import torch
    from transformers.trainer_utils import enable_full_determinism

    examples = read_examples(request.checkpoint, request.chats, request.max_length)
    at_a_time = _at_a_time(request, examples)
    plan = request.plan or _plan(request, examples, at_a_time)
    (request.folder / PRECISION).write_text(plan.dtype)
    enable_full_determinism(request.settings.seed, warn_only=True)
    model = _model(request, plan.dtype)
    trainer = _trainer(model, request, examples, plan, at_a_time)
    trainer.train(resume_from_checkpoint=str(request.resume) if request.resume else None)
    weights = [weight.numel() for weight in model.parameters() if weight.requires_grad]
    _save(model, request)
    return TrainResult(
        device=torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        dtype=plan.dtype,
        recomputes=plan.recomputes,
        trained_parameters=sum(weights),
        examples=len(examples.fitting),
        left_out=examples.left_out,
        learnt_tokens=examples.learnt,
        longest=examples.longest,
    )


def _plan(request: TrainRequest, examples: Examples, at_a_time: int) -> Plan:
    """Choose how the memory is used, by what is free.

    Raises:
        TrainError: too little memory for any way.
    """
    import torch

    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_bytes()
    sizes, dtypes = sizes_of(request.checkpoint), dtypes_for(request)
    return choose_plan(sizes, request.settings.rank, at_a_time, examples.longest, dtypes, free)


def dtypes_for(request: TrainRequest) -> list[str]:
    """Return what the base may be in, the best first; where a run goes on, only what it began with."""
    import torch

    begun = request.folder / PRECISION
    if request.resume is not None and begun.is_file():
        return [begun.read_text()]
    if not request.settings.rank:
        return ["float32"]
    if torch.cuda.is_available() and request.dtype == "bfloat16" and torch.cuda.is_bf16_supported():
        return ["bfloat16"]
    return ["float32", "bfloat16"]


def _at_a_time(request: TrainRequest, examples: Examples) -> int:
    """Return how many chats of a batch are read at a time; a GPU reads all of them."""
    import torch

    batch_size = request.settings.batch_size
    if torch.cuda.is_available():
        return batch_size
    return chats_at_a_time(sizes_of(request.checkpoint), batch_size, examples.longest)


def _model(request: TrainRequest, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    plain: Any = GenerationConfig
    model: Any = AutoModelForCausalLM.from_pretrained(
        request.checkpoint,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        generation_config=plain(),  # the base's is not read: saving would refuse what loading takes
    )
    return _with_adapter(model, request.settings.rank) if request.settings.rank else model


def _with_adapter(model: Any, rank: int) -> Any:
    """Put a LoRA beside every matrix of the layers, in float32.

    Every matrix rather than those of attention: Source: Dettmers et al., QLoRA, arXiv:2305.14314, section 4. The change
    is scaled by alpha / rank = 2, so that a learning rate keeps its meaning for every rank. No dropout: a pass or
    two over the chats leaves little to overfit, and the result is judged on chats held out.
    """
    from peft import LoraConfig, get_peft_model

    lora: Any = LoraConfig
    config = lora(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def _trainer(model: Any, request: TrainRequest, examples: Examples, plan: Plan, at_a_time: int) -> Any:
    import torch
    from transformers import Trainer, TrainingArguments

    settings, on_gpu = request.settings, torch.cuda.is_available()
    arguments: Any = TrainingArguments(
        output_dir=str(request.folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=at_a_time,
        gradient_accumulation_steps=settings.batches_per_step * settings.batch_size // at_a_time,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=WARM_UP,
        max_grad_norm=LARGEST_GRADIENT,
        weight_decay=0.0,
        seed=settings.seed,
        data_seed=settings.seed,
        gradient_checkpointing=plan.recomputes,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=not on_gpu,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        save_strategy="no",
        save_total_limit=KEPT,
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several would be fed by threads, and sum in another order
    rows = [{"input_ids": example.ids, "labels": example.labels} for example in examples.fitting]
    trainer: Any = Trainer
    return trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=_batch,
        callbacks=[watch_steps(request.folder, request.save_seconds)],
    )


def _batch(rows: "list[dict[str, list[int]]]") -> "dict[str, torch.Tensor]":
    """Return int64 `[batch, sequence]` each; padding comes last, where no token sees it, and is not learnt."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[int], with_what: int) -> list[int]:
        return values + [with_what] * (longest - len(values))

    return {
        "input_ids": torch.tensor([padded(row["input_ids"], row["input_ids"][-1]) for row in rows]),
        "labels": torch.tensor([padded(row["labels"], IGNORED) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
    }


def _save(model: Any, request: TrainRequest) -> None:
    import torch

    into = request.folder / TUNED
    shutil.rmtree(into, ignore_errors=True)
    if not request.settings.rank:
        model.to(getattr(torch, request.dtype)).save_pretrained(into)
        return
    config: Any = model.peft_config["default"]
    # Not the path of this machine that it was loaded from.
    config.base_model_name_or_path, config.revision = request.base_name, request.base_revision
    model.save_pretrained(into / ADAPTER, save_embedding_layers=False)
    (into / ADAPTER / "README.md").unlink(missing_ok=True)  # a form that nobody filled in
