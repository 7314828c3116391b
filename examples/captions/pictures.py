"""The data of train.py: pictures of one to three of scikit-learn's digits, and what they show, in words."""

from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE = 24  # pixels of a picture; a digit has 8
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# The upper left corner of each digit of an arrangement: row and column.
PLACES = {
    "alone": [(8, 8)],
    "column": [(3, 8), (13, 8)],
    "row": [(8, 3), (8, 13)],
    "tip": [(3, 8), (13, 3), (13, 13)],
    "base": [(3, 3), (3, 13), (13, 8)],
}


def split_digits() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return 1,437 digits (pixels, labels) to compose training pictures from, and 360 others for held-out ones."""
    digits = load_digits()
    pixels, labels = digits.images * 255 / 16, digits.target
    train, held_out, *numbers = train_test_split(pixels, labels, test_size=0.2, random_state=0)
    return [(train, numbers[0]), (held_out, numbers[1])]


def compose(pixels: np.ndarray, labels: np.ndarray, count: int, seed: int) -> Iterator[tuple[bytes, str]]:
    """Yield pictures, as SIDE x SIDE bytes, with their captions."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        arrangement = str(random.choice(list(PLACES)))
        places = PLACES[arrangement]
        chosen = random.integers(len(labels), size=len(places))
        if len(places) > 1 and random.random() < 0.2:  # captions of two equal digits differ in their words
            same = np.flatnonzero(labels == labels[chosen[0]])
            chosen[1] = random.choice(same)
        picture = np.zeros((SIDE, SIDE), np.uint8)
        for (top, left), digit in zip(places, chosen, strict=True):
            top, left = np.array([top, left]) + random.integers(-2, 3, size=2)
            picture[top : top + 8, left : left + 8] = np.maximum(picture[top : top + 8, left : left + 8], pixels[digit])
        yield picture.tobytes(), caption(arrangement, [int(label) for label in labels[chosen]])


def caption(arrangement: str, digits: list[int]) -> str:
    """Describe digits: "a three above two ones"."""
    if arrangement == "alone":
        return f"{a(digits[0])} alone"
    if arrangement in ("row", "column"):
        if digits[0] == digits[1]:
            return f"two {plural(digits[0])} in a {arrangement}"
        return f"{a(digits[0])} {'above' if arrangement == 'column' else 'left of'} {a(digits[1])}"
    if arrangement == "tip":
        return f"{a(digits[0])} above {pair(*digits[1:])}"
    return f"{pair(*digits[:2])} above {a(digits[2])}"


def pair(left: int, right: int) -> str:
    """Name two digits beside each other."""
    return f"two {plural(left)}" if left == right else f"{a(left)} and {a(right)}"


def a(digit: int) -> str:
    """Name one digit with its article."""
    return f"{'an' if digit == 8 else 'a'} {NAMES[digit]}"


def plural(digit: int) -> str:
    """Name several equal digits."""
    return "sixes" if digit == 6 else f"{NAMES[digit]}s"
