"""TransformerLens' own bridge around a live transformers model, to hold its tools' results against."""


def bridge_of(model):
    """A TransformerBridge of the same weights, nothing processed."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config).eval()
