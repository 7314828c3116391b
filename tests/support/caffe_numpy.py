"""Caffe's layers and losses written out in NumPy, in Caffe's order of axes, for the tests: loops, float64."""

from __future__ import annotations

import math

import numpy as np


def convolution(x, w, b, stride=(1, 1), pad=(0, 0), dilation=(1, 1), group=1):
    n, _, height, width = x.shape
    out, per, kh, kw = w.shape
    x = np.pad(x, [(0, 0), (0, 0), (pad[0],) * 2, (pad[1],) * 2])
    sides = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, p, d, k, s in zip((height, width), pad, dilation, (kh, kw), stride, strict=True)
    ]
    y = np.zeros((n, out, *sides))
    for o in range(out):
        first = o // (out // group) * per
        for i in range(sides[0]):
            for j in range(sides[1]):
                top, left = i * stride[0], j * stride[1]
                window = x[
                    :, first : first + per, top : top + dilation[0] * kh : dilation[0],
                    left : left + dilation[1] * kw : dilation[1],
                ][:, :, :kh, :kw]  # fmt: skip
                y[:, o, i, j] = (window * w[o]).sum((1, 2, 3)) + b[o]
    return y


def deconvolution(x, w, b, stride=(1, 1), pad=(0, 0), dilation=(1, 1), group=1):
    n, inputs, height, width = x.shape
    _, per, kh, kw = w.shape
    whole = [
        s * (side - 1) + d * (k - 1) + 1
        for side, d, k, s in zip((height, width), dilation, (kh, kw), stride, strict=True)
    ]
    y = np.zeros((n, per * group, *whole))
    for c in range(inputs):
        first = c // (inputs // group) * per
        for i in range(height):
            for j in range(width):
                for p in range(kh):
                    for q in range(kw):
                        at = i * stride[0] + p * dilation[0], j * stride[1] + q * dilation[1]
                        y[:, first : first + per, at[0], at[1]] += x[:, c, i, j, None] * w[c, :, p, q]
    y = y[:, :, pad[0] : whole[0] - pad[0], pad[1] : whole[1] - pad[1]]
    return y + b[:, None, None]


def pooling(x, kind, kernel, stride, pad=(0, 0), ceil=True):
    sides = []
    for side, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True):
        size = (math.ceil if ceil else math.floor)((side + 2 * p - k) / s) + 1
        sides.append(size - 1 if any(pad) and (size - 1) * s >= side + p else size)
    y = np.zeros((*x.shape[:2], *sides))
    for i in range(sides[0]):
        for j in range(sides[1]):
            starts = [i * stride[0] - pad[0], j * stride[1] - pad[1]]
            ends = [min(at + k, side + p) for at, k, side, p in zip(starts, kernel, x.shape[2:], pad, strict=True)]
            window = x[:, :, max(starts[0], 0) : ends[0], max(starts[1], 0) : ends[1]]
            area = (ends[0] - starts[0]) * (ends[1] - starts[1])
            y[:, :, i, j] = window.max((2, 3)) if kind == "MAX" else window.sum((2, 3)) / area
    return y


def lrn(x, size=5, alpha=1.0, beta=0.75, k=1.0):
    y = np.zeros_like(x)
    for c in range(x.shape[1]):
        window = x[:, max(0, c - size // 2) : c + size // 2 + 1]
        y[:, c] = x[:, c] / (k + alpha / size * (window**2).sum(1)) ** beta
    return y


def lrn_within(x, size=5, alpha=1.0, beta=0.75):
    return x * (1 + alpha * pooling(x**2, "AVE", (size, size), (1, 1), (size // 2, size // 2))) ** -beta


def mvn(x, across=False, variance=True, eps=1e-9):
    axes = (1, 2, 3) if across else (2, 3)
    centred = x - x.mean(axes, keepdims=True)
    return centred / (np.sqrt((centred**2).mean(axes, keepdims=True)) + eps) if variance else centred


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, cont, w_x, b, w_h, static=None, w_static=None):
    """Time first; the gates are input, forget, output, candidate."""
    size = w_h.shape[1]
    hidden = cell = np.zeros((x.shape[1], size))
    outputs = []
    for step, mark in zip(x, cont[..., None], strict=True):
        gates = step @ w_x.T + b + (hidden * mark) @ w_h.T
        if static is not None:
            gates = gates + static @ w_static.T
        enters, stays, leaves, candidate = np.split(gates, 4, 1)
        cell = mark * sigmoid(stays) * cell + sigmoid(enters) * np.tanh(candidate)
        hidden = sigmoid(leaves) * np.tanh(cell)
        outputs.append(hidden)
    return np.stack(outputs)


def rnn(x, cont, w_x, b, w_h, w_o, b_o):
    hidden = np.zeros((x.shape[1], w_h.shape[1]))
    outputs = []
    for step, mark in zip(x, cont[..., None], strict=True):
        hidden = np.tanh(step @ w_x.T + b + (hidden * mark) @ w_h.T)
        outputs.append(np.tanh(hidden @ w_o.T + b_o))
    return np.stack(outputs)


def argmax(x, k=1, axis=None, values=False):
    """Of equal values the one with the higher index comes first."""
    if axis is None:
        rows = [sorted(((v, i) for i, v in enumerate(row.ravel())), reverse=True)[:k] for row in x]
        places = np.array([[i for _, i in row] for row in rows], float)
        best = np.array([[v for v, _ in row] for row in rows])
        return np.stack([places, best] if values else [places], 1)
    order = np.flip(np.argsort(x, axis, kind="stable"), axis)
    order = np.take(order, range(k), axis)
    return np.take_along_axis(x, order, axis) if values else order.astype(float)


def softmax_loss(scores, labels, normalization="VALID", ignore=None, axis=1):
    """Scores in Caffe's order, labels without their axis."""
    moved = np.moveaxis(scores, axis, -1)
    total = valid = 0
    for place in np.ndindex(*moved.shape[:-1]):
        if labels[place] != ignore:
            row = moved[place] - moved[place].max()
            total += np.log(np.exp(row).sum()) - row[int(labels[place])]
            valid += 1
    count = {"VALID": valid, "FULL": labels.size, "BATCH_SIZE": math.prod(scores.shape[:axis]), "NONE": 1}
    return total / max(1, count[normalization])


def sigmoid_loss(scores, labels, normalization="BATCH_SIZE", ignore=None):
    losses = -(labels * np.log(sigmoid(scores)) + (1 - labels) * np.log(1 - sigmoid(scores)))
    kept = np.ones_like(scores) if ignore is None else labels != ignore
    count = {"VALID": kept.sum(), "FULL": labels.size, "BATCH_SIZE": len(scores), "NONE": 1}[normalization]
    return np.where(kept, losses, 0).sum() / max(1, count)


def euclidean_loss(scores, labels):
    return ((scores - labels) ** 2).sum() / 2 / len(scores)


def hinge_loss(scores, labels, squared=False):
    signs = np.ones_like(scores)
    signs[np.arange(len(scores)), labels.astype(int)] = -1
    margins = np.maximum(0, 1 + signs * scores)
    return (margins**2 if squared else margins).sum() / len(scores)


def contrastive_loss(left, right, alike, margin=1.0, legacy=False):
    squared = ((left - right) ** 2).sum(1)
    apart = np.maximum(margin - squared, 0) if legacy else np.maximum(margin - np.sqrt(squared), 0) ** 2
    return (alike * squared + (1 - alike) * apart).sum() / 2 / len(left)


def accuracy(scores, labels, top_k=1, ignore=None):
    """Scores (places, classes); a tie counts against."""
    right = [
        (row >= row[int(label)]).sum() - 1 < top_k
        for row, label in zip(scores, labels, strict=True) if label != ignore
    ]  # fmt: skip
    return float(np.mean(right)) if right else 0.0
