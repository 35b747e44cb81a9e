"""The rules of operators over space and time: Fourier transforms, complex numbers, windows, regions."""

import math

from pliant.graph.labels import Field, Traced, along, vectors
from pliant.graph.rules import Call, Fields, Result, axis_of, merge, rule, unknown_result, without


def _chosen(call: Call, dims: int) -> list[int]:
    """The axes that a transform runs over."""
    given = call.arg("dim", call.arg("dims"))
    sizes = call.arg("s")
    if given is None:
        kind = call.node.packet
        several = kind.endswith(("n", "shift"))
        given = range(dims - (len(sizes or range(dims)) if several else 2 if kind.endswith("2") else 1), dims)
    return [axis_of(d, dims) for d in ([given] if isinstance(given, int) else given)]


@rule(*(f"fft_{kind}{rank}" for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft") for rank in ("", "2", "n")),
      "fft_fftshift", "fft_ifftshift", "_fft_r2c", "_fft_c2r", "_fft_c2c")  # fmt: skip
def transform(call: Call) -> Result:
    """Transformed axes are fixed, the others pass."""
    source = call.tensors[0]
    return without(call, source.fields, _chosen(call, len(source.shape)))


@rule("stft", "istft")
def short_transform(call: Call) -> Result:
    """Only leading axes pass: the signal's `[.., t]` against `[.., f, t]` (and a last axis of real and imaginary)."""
    source, dims = call.tensors[0], call.out.dim()
    call.labels.fix(f for other in call.tensors[1:] for f in other.fields)
    lead = dims - 1 if call.node.packet == "aten.istft" else len(source.shape) - 1
    rest = without(call, source.fields, range(lead, len(source.shape)))
    return tuple(Field(along(v, axis, dims)) for axis, v in vectors(call.labels.settle(rest)).items())


@rule("view_as_real", "view_as_complex")
def as_pairs(call: Call) -> Result:
    """A complex number against a last axis of two."""
    source = call.tensors[0]
    if call.node.packet == "aten.view_as_real":
        return tuple(Field(f.labels.unsqueeze(-1), f.soft) for f in source.fields)
    rest = without(call, source.fields, [len(source.shape) - 1])
    return tuple(Field(f.labels.squeeze(-1), f.soft) for f in rest)


# -- windows ---------------------------------------------------------------------------------------------------------


@rule("unfold", "unfold_copy")
def windows(call: Call) -> Result:
    """Windows along an axis, which is fixed; their entries are a new last axis."""
    source = call.tensors[0]
    rest = without(call, source.fields, [axis_of(call.arg("dimension"), len(source.shape))])
    return tuple(Field(f.labels.unsqueeze(-1), f.soft) for f in rest)


@rule("im2col")
def patches(call: Call) -> Result:
    """`[n, c, h, w]` as `[n, c * taps, places]`: a channel lives in all its taps."""
    source, taps = call.tensors[0], math.prod(call.arg("kernel_size"))
    channel = len(source.shape) - 3
    rest = without(call, source.fields, [channel + 1, channel + 2])
    return tuple(
        Field(along(v.repeat_interleave(taps) if axis == channel else v, axis, channel + 2))
        for axis, v in vectors(call.labels.settle(rest)).items()
    )


@rule("col2im")
def from_patches(call: Call) -> Result:
    """The inverse of `im2col`: what lies in all taps of a channel is one unit."""
    source, taps = call.tensors[0], math.prod(call.arg("kernel_size"))
    channel, fields = len(source.shape) - 2, []
    for axis, v in vectors(call.labels.settle(without(call, source.fields, [channel + 1]))).items():
        if axis == channel:
            joint = v.reshape(-1, taps)
            call.labels.tie(joint, joint[:, :1])
            v = joint[:, 0]
        if v.numel() > 1:
            fields.append(Field(along(v, axis, channel + 3)))
        else:
            call.labels.fix([v])
    return tuple(fields)


@rule("max_unpool2d", "max_unpool3d")
def unpool(call: Call) -> Result:
    """Leading axes pass and are those of the places, which count within one image."""
    (source, places), dims = call.tensors[:2], call.out.dim()
    lead = dims - (3 if call.node.packet.endswith("3d") else 2)
    sizes = [s if axis < lead else 1 for axis, s in enumerate(source.shape)]
    return merge(call, [(without(call, t.fields, range(lead, dims)), sizes) for t in (source, places)], dims)


@rule("diff")
def difference(call: Call) -> Result:
    """Neighbours along an axis are told apart by their place."""
    if len(call.tensors) > 1:
        return unknown_result(call)
    source = call.tensors[0]
    return without(call, source.fields, [axis_of(call.arg("dim", -1), len(source.shape))])


@rule("torchvision.roi_align", "torchvision.roi_pool")
def regions(call: Call) -> Result:
    """`[n, c, h, w]` and boxes `[k, 5]` to `[k, c, h', w']`: channels pass."""
    source, boxes = call.tensors[:2]
    call.labels.fix(boxes.fields)
    found = without(call, call.labels.settle(source.fields), [0, 2, 3])
    return [found for _ in call.out] if isinstance(call.out, tuple | list) else found


@rule("fake_quantize_per_channel_affine")
def by_channel(call: Call) -> Result:
    """One scale for each index of an axis."""
    source, dims = call.tensors[0], call.out.dim()
    axis = call.arg("axis") % dims
    return merge(call, [(source.fields, source.shape), *(_laid(t, axis, dims) for t in call.tensors[1:])], dims)


def _laid(traced: Traced, axis: int, dims: int) -> tuple[Fields, list[int]]:
    fields = tuple(Field(along(f.labels.reshape(-1), axis, dims), f.soft) for f in traced.fields)
    return fields, [traced.value.numel() if a == axis else 1 for a in range(dims)]
