"""Caffe's Datum records, written by hand: what the tests are checked against must not be what they check."""

from __future__ import annotations

import struct


def varint(value):
    out = b""
    value %= 1 << 64
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def number(field, value):
    return varint(field * 8) + varint(value)


def blob(field, value):
    return varint(field * 8 + 2) + varint(len(value)) + value


def one_float(value):
    return varint(6 * 8 + 5) + struct.pack("<f", value)


RAW = number(1, 3) + number(2, 2) + number(3, 1) + blob(4, b"abcdef") + number(5, 7) + number(7, 0)


JPEG = blob(4, b"\xff\xd8 a picture") + number(5, 300) + number(7, 1)
