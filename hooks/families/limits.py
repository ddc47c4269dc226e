"""Model types that have no row on purpose, and what works for them instead: the README's table of limits."""

_MIXTURE = (
    "its MLPs are mixtures of experts, and rows describe dense models; HookedTransformer.attach(model) gives the same "
    "attention hooks on it"
)
_OLMOE = (
    "its MLPs are mixtures of experts, and rows describe dense models; its attention (full-width QK-norm, then "
    "clip_qkv) is qk_norm with clip_position='norm' here, and HookedTransformer.attach(model) hooks the model itself"
)
_LATENT = (
    "its attention is latent: q and k are wider than v and partly shared by all heads, which one d_head cannot "
    "describe; HookedTransformer.attach(model) hooks q and k as they enter the score"
)
_RECURRENT = (
    "some of its layers are recurrent or convolutional, without q, k and scores; HookedTransformer.attach(model) hooks "
    "those that attend"
)
_SHARED_STATE = (
    "its layers share keys and values or add a second embedding, which blocks of one residual stream cannot describe; "
    "HookedTransformer.attach(model) hooks the layers that attend"
)
_SEVERAL_AXES = (
    "its rotation takes positions on several axes (time, height, width); HookedTransformer.attach(model) hooks its q "
    "and k before and after it"
)
_POSITION_SCALED = (
    "its queries are multiplied by a factor that grows with their position, which no row describes; "
    "HookedTransformer.attach(model) hooks q and k as they enter the score"
)
_LEARNED_POSITIONS = (
    "its positions are learned embeddings, not rotations; HookedTransformer.attach(model) or TransformerLens' "
    "TransformerBridge hooks it"
)
_OWN_ATTENTION = (
    "its positions are not rotations, and its attention goes past transformers' AttentionInterface, where attach would "
    "reach it; TransformerLens' TransformerBridge hooks it"
)
_OUT_OF_REACH = (
    "its attention goes past transformers' AttentionInterface, where attach would reach it, and no row describes it; "
    "TransformerLens' TransformerBridge hooks it"
)
_NOTHING_HOOKS = (
    "its attention goes past transformers' AttentionInterface, where attach would reach it, and no row describes it: "
    "nothing here hooks it"
)
_GROUPS: dict[str, str] = {
    "mixtral qwen2_moe qwen3_moe gpt_oss flex_olmo glm4_moe dots1 granitemoe hunyuan_v1_moe phimoe ernie4_5_moe "
    "llama4 llama4_text exaone_moe cohere2_moe": _MIXTURE,
    "olmoe": _OLMOE,
    "deepseek_v2 deepseek_v3 minicpm3": _LATENT,
    "qwen3_next jamba lfm2 lfm2_moe bamba falcon_h1 granitemoehybrid recurrent_gemma nemotron_h minimax olmo_hybrid": (
        _RECURRENT
    ),
    "gemma3n gemma3n_text gemma4 gemma4_text": _SHARED_STATE,
    "qwen2_vl qwen2_5_vl qwen3_vl": _SEVERAL_AXES,
    "ministral3": _POSITION_SCALED,
    "gpt2 gpt_bigcode opt": _LEARNED_POSITIONS,
    "gpt_neo bloom mpt": _OWN_ATTENTION,
    "falcon xglm": _OUT_OF_REACH,
    "gpt_neox_japanese doge": _NOTHING_HOOKS,
}
LIMITS: dict[str, str] = {what: why for whats, why in _GROUPS.items() for what in whats.split()}
