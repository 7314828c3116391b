"""A stand-in for Keras that loads at once, for ranks that only meet (tests/benchmarks/scale.py)."""


class backend:  # noqa: N801 - Keras's name
    @staticmethod
    def backend() -> str:
        return "tensorflow"
