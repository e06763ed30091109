"""What each target and recipe is to the ONNX Runtime GenAI builder.

The builder takes unknown options without a word and returns 0 for packages that cannot run (fp16 on a CPU breaks
at decode, `is_symmetric=false` on tied embeddings does not load), so it is given these and nothing else.
"""

from importlib.metadata import version
from typing import Literal

from slmpack.errors import UsageError
from slmpack.records import Recipe, Record, Target


class BuilderOptions(Record):
    """The builder's arguments, all of them.

    Attributes:
        block_size: weights of a row that share one scale.
        algo_config: `default` quantises every MatMul alike; `k_quant_mixed` has the head and sensitive layers in int8.
        int8_nodes: MatMuls of an int4 graph that are quantised to 8 bits instead, by their names in it.
    """

    precision: Literal["int4", "int8"]
    execution_provider: Literal["cpu", "cuda"]
    algo_config: Literal["default", "k_quant_mixed"]
    block_size: Literal[16, 32, 128]
    int8_nodes: tuple[str, ...] = ()

    @property
    def streams(self) -> bool:
        """Whether weights can be quantised while they are written; k_quant looks at all of a matrix many times."""
        return self.algo_config == "default"


def _cpu(precision: Literal["int4", "int8"], algo: Literal["default", "k_quant_mixed"],
         block_size: Literal[16, 32, 128]) -> BuilderOptions:  # fmt: skip
    return BuilderOptions(precision=precision, execution_provider="cpu", algo_config=algo, block_size=block_size)


# Cheapest first.
RECIPES: dict[Target, dict[Recipe, BuilderOptions]] = {
    Target.CPU_INT4: {
        Recipe.SMALL: _cpu("int4", "default", 32),
        Recipe.BALANCED: _cpu("int4", "k_quant_mixed", 32),
        Recipe.ACCURATE: _cpu("int4", "k_quant_mixed", 16),
    },
    Target.CPU_INT8: {
        Recipe.SMALL: _cpu("int8", "default", 128),
        Recipe.ACCURATE: _cpu("int8", "default", 32),
    },
    Target.TRANSFORMERS: {},
}

# What the bytes of a build depend on.
BUILDERS: dict[Target, tuple[str, ...]] = {
    Target.CPU_INT4: ("onnxruntime-genai", "onnxruntime", "onnx-ir", "transformers"),
    Target.CPU_INT8: ("onnxruntime-genai", "onnxruntime", "onnx-ir", "transformers"),
    Target.TRANSFORMERS: ("transformers",),
}

# An upper bound for the space check: tied embeddings may be stored twice, once in float32.
BYTES_PER_PARAMETER = {Target.CPU_INT4: 2.0, Target.CPU_INT8: 2.5, Target.TRANSFORMERS: 0.0}


def builder_versions(target: Target) -> dict[str, str]:
    """Return the installed versions of what builds `target`."""
    return {name: version(name) for name in BUILDERS[target]}


def ladder_for(target: Target, recipe: Recipe) -> tuple[Recipe | None, ...]:
    """Return the recipes to try, cheapest first: the one asked for, or with `auto` all that the target has.

    Raises:
        UsageError: the target has no such recipe.
    """
    offered = RECIPES[target]
    if recipe is Recipe.AUTO:
        return tuple(offered) or (None,)
    if recipe not in offered:
        names = ", ".join((Recipe.AUTO, *offered)) if offered else "auto only, since it is not quantised"
        raise UsageError(f"recipe {recipe} for target {target}", f"its recipes are: {names}", "leave --recipe out")
    return (recipe,)
