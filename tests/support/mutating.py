"""Values and files gone wrong in the ways that files do: other types, other sizes, nesting, flipped bits, cut ends."""

import copy
import json
import math

BASE_SIZES = (0, 1, 2, 3, 5, 7, 64, -1, -7, 255, 2**31, 2**53, 2**63, 2**64, 10**30)
BASE_FLOATS = (0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-30, 1e30, 1e308, math.nan, math.inf, -math.inf)
TEXTS = ("", "x", "1", "1.0", "true", "null", "\ud800", "../x", "a\0b", "é" * 40, "9" * 400)


def value(rng, depth=0):
    """Any JSON value, wrong ones above all."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice(BASE_SIZES)
    if kind == 1:
        return rng.choice(BASE_FLOATS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.random() < 0.5
    if kind == 4 or depth > 2:
        return None
    if kind in (5, 6):
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {
            rng.choice(("a", "rope_type", "weight_map", "")): value(rng, depth + 1) for _ in range(rng.randrange(3))
        }
    return nested(rng.choice((5, 40, 200)))


def nested(depth):
    """A list in a list in a list."""
    inner = 1
    for _ in range(depth):
        inner = [inner]
    return inner


def near(rng, old):
    """A value of the same kind as an old one, so that what reads it may well believe it."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice((old + 1, old - 1, old * 2, max(old // 2, 1), -old, 0, float(old), str(old), old + 0.5))
    if isinstance(old, float):
        return rng.choice(
            (old * 2, old / 2, -old, 0.0, old * 1e6, math.nan, round(old) if math.isfinite(old) else 0, str(old))
        )
    if isinstance(old, str):
        return rng.choice((old.upper(), old + "x", old[:-1], "", [old]))
    if isinstance(old, list):
        return rng.choice((old[1:], old + old[:1], old[::-1], [None] * len(old), tuple(old), {}))
    if isinstance(old, dict):
        return rng.choice(({}, [old], {"a": old}, list(old), {**old, "a": 1}))
    return rng.choice((0, 1, 8, False, "x", []))


def places(tree, way=()):
    """Every way to a value in a JSON tree, the tree's own among them."""
    yield way
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, each in inside:
        yield from places(each, (*way, key))


def changed(rng, tree, times=1):
    """A copy of a JSON tree with some values lost, doubled, renamed, or made near or far ones."""
    tree = copy.deepcopy(tree)
    for _ in range(times):
        ways = [way for way in places(tree) if way]
        if not ways:
            return tree
        *path, last = rng.choice(ways)
        holder = tree
        for key in path:
            holder = holder[key]
        kind = rng.randrange(6)
        if kind == 0:
            del holder[last]
        elif kind == 1 and isinstance(holder, dict):
            holder[f"{last}_x"] = holder.pop(last)
        elif kind in (2, 3):
            holder[last] = near(rng, holder[last])
        else:
            holder[last] = value(rng)
    return tree


def flipped(rng, data, within=None):
    """A file's bytes with some of them wrong: flipped bits, a cut, a run of zeros, large counts, doubled parts."""
    data, most = bytearray(data), min(within or len(data), len(data))
    kind = rng.randrange(7)
    at = rng.randrange(max(most, 1))
    if kind <= 2:
        for _ in range(rng.choice((1, 1, 1, 4, 32))):
            data[rng.randrange(most)] ^= 1 << rng.randrange(8)
    elif kind == 3:
        del data[rng.randrange(len(data)) :]
    elif kind == 4:
        data[at : at + 8] = rng.choice((0, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)).to_bytes(8, "little")
    elif kind == 5:
        data[at:at] = data[at : at + rng.randrange(1, 64)]
    else:
        data[at : at + rng.randrange(1, 64)] = rng.choice((b"\0", b"\xff", b"[", b"{", b'"')) * rng.randrange(1, 64)
    return bytes(data)


def as_json(tree):
    """JSON as Python writes it, NaN and infinity among it."""
    return json.dumps(tree)
