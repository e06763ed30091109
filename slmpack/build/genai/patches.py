"""What the ONNX Runtime GenAI builder gets wrong of some families, patched before it builds.

    config.json --transformers--> config --complete_config--> the builder's model classes, patched by patch_models

Where it does not stop, it returns 0 and the package answers, but not as its source:

| family | what is wrong | patched by |
|---|---|---|
| Gemma 3 | it stops: since transformers 5 `rope_parameters` are a dictionary for each kind of layer | complete_config |
| Gemma 3 | the linear factor of the global layers' positions is used in the local layers too | patch_models |
| Phi-3 with LongRoPE | it stops: it reads `type`, which transformers 5 calls `rope_type` | complete_config |
| any with YaRN | it stops where defaults are left out, and does not round the range as transformers does | both |
| Phi, OLMo, Nemotron | norms have an epsilon of 1e-6, not the model's | complete_config |
| Gemma, Nemotron | 1 is added to the norms' weights in bfloat16, which rounds them to 8 bits | patch_models |
| OLMo | norms do not take the mean off | patch_models |
| OLMo with `clip_qkv` | queries, keys and values are not clipped | patch_models |
| SmolLM3 | it stops: layers without positions get them from an input that is not there | patch_models |
| any | the graph names the git commit of the folder that `.venv` lies in, not the builder's | patch_models |
| Llama, SmolLM3, Nemotron | positions scaled otherwise than Llama 3's are taken for unscaled ones | patch_models |

Source: found by experiment with onnxruntime-genai 0.18.0 and transformers 5.22 on checkpoints of two to six layers. In
float32 a package's greedy ids are those of transformers, and its logits are off from float64 by 0.5 to 2.4 times what
transformers in float32 is; without the patches by 15 to 43 times (the epsilon), 8,000 and more (all others). How each
comes about is in `builders/{base,gemma,llama,olmo,phi,smollm}.py`.
"""

from functools import cache
from typing import Any

from slmpack.errors import BuildError

# transformers' OlmoLayerNorm has no other. Source: transformers, models/olmo/modeling_olmo.py.
OLMO_EPSILON = 1e-5
# What transformers takes where the configuration has none. Source: transformers, modeling_rope_utils.py.
YARN = {"beta_fast": 32, "beta_slow": 1}


def complete_config(config: Any) -> None:
    """Add to transformers' configuration of a model what the builder looks for, in place.

    Raises:
        BuildError: the configuration asks for what the builder would leave out without a word.
    """
    if config.model_type == "phi" and config.qk_layernorm:
        raise BuildError(
            "a Phi with qk_layernorm",
            "one without: the ONNX Runtime GenAI builder leaves it out",
            "use --target transformers",
        )
    _complete_epsilon(config)
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type == "gemma3_text" and "full_attention" in rope:
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = rope["full_attention"]
    elif rope.get("rope_type") == "longrope":
        rope.setdefault("type", "longrope")
    elif rope.get("rope_type") == "yarn":
        rope |= {name: rope.get(name) or value for name, value in YARN.items()}


def _complete_epsilon(config: Any) -> None:
    """Name the norms' epsilon as the builder expects it, regardless of the family's own name."""
    if hasattr(config, "rms_norm_eps"):
        return
    for name in ("layer_norm_eps", "norm_eps"):
        if hasattr(config, name):
            config.rms_norm_eps = getattr(config, name)
            return
    if config.model_type == "olmo":
        config.rms_norm_eps = OLMO_EPSILON


@cache
def patch_models() -> None:
    """Replace methods of the builder's model classes, once; for a process that imported the builder."""
    import onnxruntime_genai
    from builders import base, gemma, llama, olmo, smollm  # type: ignore[import-not-found]

    base.Model.get_genai_commit = classmethod(lambda _: onnxruntime_genai.__commit__)
    _add_to_norms_in_float32(base.Model)
    _refuse_unknown_positions(base.Model, llama.LlamaModel)
    _take_yarn_from_transformers(base.Model)
    _scale_global_positions_alone(gemma.Gemma3Model, base.Model)
    _take_the_mean_off(olmo.OLMoModel)
    _clip_attention_inputs(olmo.OLMoModel)
    _leave_positions_out(smollm.SmolLM3Model)


def _add_to_norms_in_float32(model: Any) -> None:
    stock, stock_qk = model.make_layernorm, model.make_attention_qk_norm

    def make_layernorm(self: Any, layer_id: int, layernorm: Any, *args: Any, **named: Any) -> None:
        _widen(layernorm)
        stock(self, layer_id, layernorm, *args, **named)

    def make_attention_qk_norm(self: Any, layer_id: int, attention: Any) -> None:
        if self.attention_attrs["q_norm"] and self.attention_attrs["k_norm"]:
            _widen(attention.q_norm)
            _widen(attention.k_norm)
        stock_qk(self, layer_id, attention)

    model.make_layernorm = make_layernorm
    model.make_attention_qk_norm = make_attention_qk_norm


def _widen(norm: Any) -> None:
    import torch

    norm.weight = torch.nn.Parameter(norm.weight.detach().float(), requires_grad=False)


def _refuse_unknown_positions(model: Any, llama: Any) -> None:
    """Name the scaling that the general class does not know, and have it look at all but Llama 3's for Llama too."""
    stock, stock_llama = model.make_rope_init, llama.make_rope_init

    def make_rope_init(self: Any, config: Any) -> None:
        try:
            stock(self, config)
        except NotImplementedError as error:
            raise BuildError(
                f"positions scaled by {config.rope_parameters['rope_type']} in {config.architectures[0]}",
                "a rope_type that the ONNX Runtime GenAI builder knows",
                "use --target transformers",
            ) from error

    def make_llama_rope_init(self: Any, config: Any) -> None:
        kind = config.rope_parameters["rope_type"]
        (stock_llama if kind == "llama3" else model.make_rope_init)(self, config)

    model.make_rope_init = make_rope_init
    llama.make_rope_init = make_llama_rope_init


def _take_yarn_from_transformers(model: Any) -> None:
    stock, stock_frequencies = model.make_rope_init, model.make_inv_freq_rescaled_with_ntk

    def make_rope_init(self: Any, config: Any) -> None:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        stock(self, config)
        if self.rope_attrs["mscale_policy"] == "yarn":
            self.frequencies, self.rope_attrs["mscale"] = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")

    def make_inv_freq_rescaled_with_ntk(self: Any, inv_freq: Any) -> Any:
        return self.frequencies if hasattr(self, "frequencies") else stock_frequencies(self, inv_freq)

    model.make_rope_init = make_rope_init
    model.make_inv_freq_rescaled_with_ntk = make_inv_freq_rescaled_with_ntk


def _scale_global_positions_alone(gemma3: Any, model: Any) -> None:
    def make_rotary_embedding_multi_cache(self: Any) -> None:
        rope = self.rope_attrs
        kinds = (("global", rope["theta"], rope["rescale_factors"]), ("local", self.rope_local_theta, 1))
        for kind, theta, factor in kinds:
            cos, sin = f"cos_cache_{kind}", f"sin_cache_{kind}"
            setattr(self, f"{cos}_name", cos)
            setattr(self, f"{sin}_name", sin)
            rope |= {"create_caches": True, "theta": theta, "rescale_factors": factor}
            model.make_rotary_embedding_caches(self, cos_cache_name=cos, sin_cache_name=sin)

    gemma3.make_rotary_embedding_multi_cache = make_rotary_embedding_multi_cache


def _take_the_mean_off(olmo: Any) -> None:
    stock = olmo.__init__

    def init(self: Any, *args: Any) -> None:
        stock(self, *args)
        self.layernorm_attrs["simple"] = False

    olmo.__init__ = init


def _clip_attention_inputs(olmo: Any) -> None:
    stock, stock_init = olmo.make_attention_qk_subgraph, olmo.make_config_init

    def make_config_init(self: Any, config: Any) -> None:
        stock_init(self, config)
        self.clip_qkv = config.clip_qkv

    def make_attention_qk_subgraph(self: Any, layer_id: int, attention: Any, root_input: str, **named: Any) -> None:
        if self.clip_qkv is not None:
            paths = [name for name in ("q_path", "k_path", "v_path") if self.attention_attrs[name]]
            for name in paths:  # the first alone where the three are one matrix
                self.attention_attrs[name] = _clipped(self, self.attention_attrs[name], f"{layer_id}/attn/{name}")
        stock(self, layer_id, attention, root_input, **named)

    olmo.make_config_init = make_config_init
    olmo.make_attention_qk_subgraph = make_attention_qk_subgraph


def _clipped(model: Any, path: str, where: str) -> str:
    """Add a Clip behind the value `path`; return its output's name."""
    name = f"/model/layers.{where}/Clip"
    dtype = model.to_str_dtype(model.io_dtype)
    bounds = [f"/model/constants/{dtype}/{bound}" for bound in (-model.clip_qkv, model.clip_qkv)]
    model.make_node("Clip", inputs=[path, *bounds], outputs=[f"{name}/output_0"], name=name)
    model.make_value(f"{name}/output_0", model.io_dtype, shape=model.values[path].shape)
    return f"{name}/output_0"


def _leave_positions_out(smollm3: Any) -> None:
    stock = smollm3.make_attention_qk_rope

    def make_attention_qk_rope(self: Any, layer_id: int, **named: Any) -> tuple[str, str]:
        if not self.no_rope_layers[layer_id]:
            return "", ""
        caches: tuple[str, str] = stock(self, layer_id, **named)
        return caches

    smollm3.make_attention_qk_rope = make_attention_qk_rope
