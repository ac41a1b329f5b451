"""Are a file's weights the merged ones? What was seen of each tensor (tensors.py), as a few sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minipovid.models.adapter import Factor
from minipovid.verify.causes import Cause, listed
from minipovid.verify.expected import Expected
from minipovid.verify.tensors import TensorFit, compare

SURE = 0.1  # the standard error up to which a share of the adapter is judged by itself
SLACK = 0.05  # a share this far from the due one, and four standard errors, is wrong; twice that below 8 bits
LOST = 0.9  # of the adapter must be left by rounding


def examine(tensors: Sequence[Any], expected: Expected, other: Expected | None, file: str) -> Iterator[Cause]:
    """Every fault in the tensors of an open GGUF (gguf.ReaderTensor); `other` is the same model on the other base."""
    by_name = {tensor.name: tensor for tensor in tensors}
    missing, unknown = sorted(set(expected.names) - set(by_name)), sorted(set(by_name) - set(expected.names))
    if missing:
        yield Cause.of(file, "tensors missing", f"it lacks {listed(missing)}")
    if unknown:
        yield Cause.of(file, "tensors of another model", f"it holds {listed(unknown)}, which the model does not have")
    fits = [compare(by_name[name], expected, other) for name in expected.names if name in by_name]
    yield from _structure(fits, expected, file)
    yield from _adapter([each for each in fits if not each.fault and each.share is not None], expected, file)


def scales(factors: Mapping[str, Factor], trained: Mapping[str, float], file: str) -> Iterator[Cause]:
    """Where the exporter reads the adapter otherwise than the library that trained it; both by canonical name."""
    lost = sorted(set(trained) - set(factors))
    if lost:
        what = f"its part of {listed(lost)} is not read ({len(lost)} of {len(trained)} tensors)"
        yield Cause.of(file, "adapter not applied", what)
    shares = {name: factors[name].scale / trained[name] for name in factors if name in trained}
    wrong = [name for name, share in shares.items() if abs(share - 1) > 1e-4]
    if wrong:
        name = wrong[0]
        where = "" if len(wrong) == len(shares) else f" in {listed(wrong)}"
        what = f"the adapter is added {shares[name]:.2f} times{where}"
        yield Cause.of(file, "wrong scale", what + _slips(shares[name], factors[name], trained[name]))


# --- whose weights they are ---


def _structure(fits: Sequence[TensorFit], expected: Expected, file: str) -> Iterator[Cause]:
    for fault in dict.fromkeys(each.fault for each in fits if each.fault):
        those = [each for each in fits if each.fault == fault]
        where = places([each.name for each in those], list(expected.names))
        if fault == "q/k not permuted":
            what = f"the rows of {where} stand as in transformers, where llama.cpp wants each head's halves interleaved"
            yield Cause.of(file, fault, what)
        elif fault == "swapped":
            in_projector = all(each.name.startswith("mm.") for each in those)
            name = "projector layers swapped" if in_projector else "tensors swapped"
            yield Cause.of(file, name, listed(f"{each.name} holds {each.instead}" for each in those))
        elif fault == "other base":
            what = f"{where} were merged into the {those[0].instead} base, and the file says {expected.merge_base}"
            yield Cause.of(file, fault, what)
        else:
            what = f"{where} hold other weights ({len(those)} of {len(fits)} tensors)"
            whole = "mmproj" if "v.patch_embd.weight" in expected.names else "weights"
            name = "damaged weights" if len(those) <= len(fits) / 2 else f"{whole} of another model"
            yield Cause.of(file, name, what)


# --- how much of the adapter is in them ---


def _adapter(shares: Sequence[TensorFit], expected: Expected, file: str) -> Iterator[Cause]:
    """Faults of the adapter's part, where the base's rows are right."""
    names = [each.name for each in shares]
    lost = [each for each in shares if each.due < LOST]
    if lost:
        left = float(np.median([each.due for each in lost]))
        what = f"{lost[0].kind.name} leaves {left:.0%} of the adapter in {places([each.name for each in lost], names)}"
        yield Cause.of(
            file, "adapter rounded away", f"{what}: its steps are wider than what training changed", left > 0.5
        )
    groups = list(_groups([each for each in shares if each.due >= LOST]))
    missing = [each.name for group, share, doubt in groups for each in group if abs(share) <= max(SLACK, 3 * doubt)]
    if len(missing) == len(names) > 0:
        yield Cause.of(file, "adapter not applied", "the weights are the base's")
    elif missing:
        what = f"{places(missing, names)} hold the base's weights ({len(missing)} of {len(names)} tensors)"
        yield Cause.of(file, "adapter not applied", what)
    wrong = [
        (each, share)
        for group, share, doubt in groups
        for each in group
        if each.name not in missing and abs(share - 1) > max(SLACK if each.is_exact else 2 * SLACK, 4 * doubt)
    ]
    if wrong:
        yield _scaled(wrong, names, expected, file)


def _groups(shares: Sequence[TensorFit]) -> Iterator[tuple[list[TensorFit], float, float]]:
    """(tensors, their share, its standard error): tensor by tensor where that is sure enough, else by layer, else of
    all that are left; what is not even then is not judged."""
    groups: list[list[TensorFit]] = [[each] for each in shares]
    for key in (_layer, lambda name: ""):
        unsure: dict[str, list[TensorFit]] = {}
        for group in groups:
            share, doubt = _fused(group)
            if doubt <= SURE:
                yield group, share, doubt
            else:
                unsure.setdefault(key(group[0].name), []).extend(group)
        groups = list(unsure.values())
    yield from ((group, *_fused(group)) for group in groups if _fused(group)[1] <= SURE)


def _fused(group: Sequence[TensorFit]) -> tuple[float, float]:
    """Mean share of the due one, each tensor weighed by how well its own is known, and its standard error."""
    weights = np.array([(each.due / max(each.doubt, 1e-9)) ** 2 for each in group])
    ratios = [(each.share or 0) / each.due for each in group]
    return float(np.average(ratios, weights=weights)), float(weights.sum() ** -0.5)


def _scaled(wrong: Sequence[tuple[TensorFit, float]], names: Sequence[str], expected: Expected, file: str) -> Cause:
    share = float(np.median([share for _, share in wrong]))
    first = wrong[0][0]
    where = "" if len(wrong) == len(names) else f" in {places([each.name for each, _ in wrong], names)}"
    if not first.is_exact and expected.merge_base == "nf4" and 0.2 < share < 1:
        what = f"on the 4-bit base's own lattice {first.kind.name} leaves {share:.0%} of it{where}"
        return Cause.of(file, "adapter rounded away", f"{what}: take more bits, or merge_base original", is_cost=True)
    factor = expected.pair.factors[expected.names[first.name]]
    slips = _slips(share, factor, expected.scale(first.name) or factor.scale)
    return Cause.of(file, "wrong scale", f"the adapter is added {share:.2f} times{where}{slips}")


def _slips(share: float, factor: Factor, scale: float) -> str:
    """Which slips give this factor; `scale` is the right one."""
    rank = factor.a.shape[0]
    slips = {
        "alpha / r was left out": 1 / scale,
        "alpha / r was taken for alpha / sqrt(r), rsLoRA's": rank**0.5,
        "alpha / sqrt(r), rsLoRA's, was taken for alpha / r": rank**-0.5,
        "it was subtracted": -1.0,
        "it was added twice": 2.0,
        "alpha / r was applied twice": scale,
    }
    fitting = [slip for slip, value in slips.items() if abs(share / value - 1) < 0.02]
    return f", as if {' or '.join(fitting)}" if fitting else ""


# --- where ---


def _layer(name: str) -> str:
    block = re.match(r"(?:v\.)?blk\.\d+(?=\.)", name)
    return block[0] if block else name


def places(names: Sequence[str], among: Sequence[str]) -> str:
    """Where these tensors are: "every tensor", "blk.2 and blk.3", "attn_q of every layer", or their names."""
    wanted = set(names)
    if wanted == set(among):
        return "every tensor"
    layers: dict[str, set[str]] = {}
    for name in among:
        layers.setdefault(_layer(name), set()).add(name)
    whole = [layer for layer, group in layers.items() if group <= wanted]
    if wanted == {name for layer in whole for name in layers[layer]}:
        return listed(whole, 8)
    parts = sorted({name.removeprefix(f"{_layer(name)}.") for name in names if _layer(name) != name})
    if wanted == {name for name in among if name.removeprefix(f"{_layer(name)}.") in parts}:
        return f"{listed(part.removesuffix('.weight') for part in parts)} of every layer"
    return listed(names)
