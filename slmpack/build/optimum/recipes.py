"""Recipes of exported graphs, the versions of what exports them, and the digest of both."""

from importlib.metadata import version

from slmpack.build.optimum.environment import exporter_requirements, pinned_versions
from slmpack.build.optimum.quantise_graph import GraphOptions
from slmpack.errors import RecipeError
from slmpack.machine.runtimes import release_of
from slmpack.records import Recipe, Target, digest_of

EXPORT_STEPS = 2  # counts up when what is done to an exported graph changes, so that packages are built again
PINNED = ("optimum-onnx", "optimum", "transformers", "torch", "onnx")

EXPORTED: dict[Target, dict[Recipe, GraphOptions]] = {
    Target.CPU_INT4: {
        Recipe.SMALL: GraphOptions(bits=4),
        Recipe.BALANCED: GraphOptions(bits=4, mixed=True),
    },
    Target.CPU_INT8: {
        Recipe.SMALL: GraphOptions(bits=8, block_size=128),
        Recipe.ACCURATE: GraphOptions(bits=8),
    },
}

# Decoders that optimum-onnx exports for `text-generation-with-past`; a test compares the list with what it says.
# Source: optimum-onnx 0.1.0, `optimum/exporters/onnx/model_configs.py`.
MODEL_TYPES = frozenset(
    (
        "arcee",
        "bloom",
        "codegen",
        "cohere",
        "deepseek_v3",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox",
        "gpt_oss",
        "gptj",
        "granite",
        "helium",
        "internlm2",
        "llama",
        "mistral",
        "mpt",
        "nemotron",
        "olmo",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "stablelm",
    )
)


def exporter_versions() -> dict[str, str]:
    """Return the versions of what exports, which are pinned, and of what quantises, which is installed here."""
    pinned = pinned_versions(exporter_requirements())
    return {name: pinned[name] for name in PINNED} | {"onnxruntime": release_of("onnxruntime")}


def requirements_digest() -> str:
    """Return the digest of everything that the exporter's environment has."""
    return digest_of(pinned_versions(exporter_requirements()))


def exporter_digest(target: Target, recipe: Recipe | None) -> str:
    """Return the digest of all that an exported package depends on but its snapshot."""
    options = EXPORTED.get(target, {}).get(recipe) if recipe else None
    settings = options.model_dump() if options else None
    return digest_of([settings, exporter_versions(), requirements_digest(), version("transformers"), EXPORT_STEPS])


def graph_options(target: Target, recipe: Recipe | None, architecture: str) -> GraphOptions:
    """Return how an exported graph is quantised for a recipe.

    Raises:
        RecipeError: there is no such recipe on this way.
    """
    offered = EXPORTED.get(target, {})
    if recipe is not None and recipe in offered:
        return offered[recipe]
    subject = f"recipe {recipe} for {target}" if recipe else str(target)
    all_of_them = ", ".join(f"{each} {name}" for each, names in EXPORTED.items() for name in names)
    there_is = ", ".join(offered) if offered else all_of_them
    raise RecipeError(
        f"{subject} of {architecture}, which optimum exports, since the ONNX Runtime GenAI builder does not know it",
        f"one that exported graphs have: {there_is}",
        "use --recipe auto" if offered else "use --target cpu-int4",
    )
