"""What each target and recipe is to the ONNX Runtime GenAI builder.

The builder takes unknown options without a word and returns 0 for packages that cannot run (fp16 on a CPU breaks
at decode, `is_symmetric=false` on tied embeddings does not load), so slmpack sets these options and no other.
"""

from functools import partial
from typing import Any, Literal

from slmpack.errors import UsageError
from slmpack.records import Provider, Recipe, Record, Target

Precision = Literal["int4", "int8", "fp16"]
Algorithm = Literal["default", "k_quant_mixed"]
BlockSize = Literal[16, 32, 128]
Placement = Literal["last_matmul"]
Quantiser = Literal["stock", "scales", "zero_points", "gptq"]


class BuilderOptions(Record):
    """The options of the builder and of the streaming quantiser in it.

    A package's digest covers the names and values of those that are not the default: another name makes every package
    that was published under it a new one.

    Attributes:
        block_size: weights of a row that share one scale.
        algo_config: `default` rounds by the block's extreme; `k_quant_mixed` searches whole matrices, and has the head
            and sensitive layers in int8.
        int8: MatMuls of an int4 graph that have 8 bits all the same, in the builder's terms: the head.
        int8_nodes: more of them, by their names in the graph.
        quantiser: of 4-bit weights: `stock` takes a block's extreme; `scales` searches its scale and `zero_points` its
            zero point too, by the activations' energy; `gptq` lets every column make up for those before it.
        fold: multiply channels up where they are rounded and down where they come from (see `fold`).
        most_bytes: raise the matrices that lose most in 4 bits to 8 until the weights take so many times what
            `stock-small` takes; None: raise none.
    """

    precision: Precision
    execution_provider: Provider
    algo_config: Algorithm = "default"
    block_size: BlockSize
    int8: tuple[Placement, ...] = ()
    int8_nodes: tuple[str, ...] = ()
    quantiser: Quantiser = "stock"
    fold: bool = False
    most_bytes: float | None = None

    @property
    def quantises(self) -> bool:
        return self.precision != "fp16"

    @property
    def weighted(self) -> bool:
        """Whether the source has to be run before its weights can be quantised."""
        return self.quantiser != "stock"

    @property
    def zero_points(self) -> bool:
        return self.quantiser in {"zero_points", "gptq"}

    @property
    def streams(self) -> bool:
        """Whether weights can be quantised while they are written; k_quant looks at all of a matrix many times."""
        return self.algo_config == "default"


# The builder's k_quant_mixed takes 1.31 times its default for SmolLM2-135M.
RAISED: dict[str, Any] = {"fold": True, "int8": ("last_matmul",), "most_bytes": 1.31}


def _int4(provider: Provider) -> dict[Recipe, BuilderOptions]:
    options = partial(BuilderOptions, precision="int4", execution_provider=provider, block_size=32)
    return {
        Recipe.SMALL: options(quantiser="scales"),
        Recipe.BALANCED: options(quantiser="zero_points", fold=True),
        Recipe.ACCURATE: options(quantiser="zero_points", **RAISED),
        Recipe.BEST: options(quantiser="gptq", **RAISED),
        Recipe.STOCK_SMALL: options(),
        Recipe.STOCK_MIXED: options(algo_config="k_quant_mixed"),
    }


# Cheapest first; the stock builder's own at the end.
RECIPES: dict[Target, dict[Recipe, BuilderOptions]] = {
    Target.CPU_INT4: _int4("cpu"),
    Target.CPU_INT8: {
        Recipe.SMALL: BuilderOptions(precision="int8", execution_provider="cpu", block_size=128),
        Recipe.ACCURATE: BuilderOptions(precision="int8", execution_provider="cpu", block_size=32),
    },
    Target.CUDA_INT4: _int4("cuda"),
    Target.CUDA_FP16: {},
    Target.TRANSFORMERS: {},
}
# What is built without a recipe, since nothing is quantised.
PLAIN: dict[Target, BuilderOptions] = {
    Target.CUDA_FP16: BuilderOptions(precision="fp16", execution_provider="cuda", block_size=32),
}
BY_NAME = (Recipe.BEST, Recipe.STOCK_SMALL, Recipe.STOCK_MIXED)  # `auto` does not try them


# What a version's page says of batches. Source: the figures on the model card of microsoft/Phi-3-mini-4k-instruct-onnx,
# for an A100: against PyTorch, 4 bits gain most for one request at a time, and at 16 less than float16 does.
BATCH_SIZES = {
    Target.CUDA_INT4: "good for one request at a time; take cuda-fp16 for batches of 16 (published figures of Phi-3)",
    Target.CUDA_FP16: "good for batches; cuda-int4 is faster for one request at a time (published figures of Phi-3)",
}


def options_for(target: Target, recipe: Recipe | None) -> BuilderOptions | None:
    """Return the builder's options; None for a target that is not built."""
    return PLAIN.get(target) if recipe is None else RECIPES[target][recipe]


def recipe_for(target: Target, recipe: Recipe) -> Recipe:
    """Return the recipe as it counts for one target of several: what is not quantised has none."""
    return recipe if RECIPES[target] else Recipe.AUTO


def recipes_to_try(target: Target, recipe: Recipe, *, with_quality_chats: bool = False) -> tuple[Recipe | None, ...]:
    """Return the recipes to try, cheapest first: the named one, or with `auto` all that need not be named.

    Args:
        with_quality_chats: the policy limits the loss on answers in chats: `best` is tried last. On SmolLM2-135M, tuned
            on 224 chats, `accurate` lost 6.0 % of their perplexity and `best` 2.7 %; on prose `best` gains nothing.

    Raises:
        UsageError: the target has no such recipe.
    """
    recipes = RECIPES[target]
    if recipe is Recipe.AUTO:
        last = [Recipe.BEST] if with_quality_chats and Recipe.BEST in recipes else []
        return (*(each for each in recipes if each not in BY_NAME), *last) or (None,)
    if recipe not in recipes:
        names = ", ".join((Recipe.AUTO, *recipes)) if recipes else "auto only, since it is not quantised"
        raise UsageError(f"recipe {recipe} for target {target}", f"{target} has {names}", "leave --recipe out")
    return (recipe,)
