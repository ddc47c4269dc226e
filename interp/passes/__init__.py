"""Attention measured in one pass over q and k: the portable pass, the fused one, and what both share."""
