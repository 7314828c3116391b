"""The conformance table: all cases by name."""

from __future__ import annotations

import importlib
from dataclasses import replace

from tests.conformance.case import Case

__all__ = ["CASES"]

KINDS = (
    "layers",
    "losses",
    "metrics",
    "optimizers",
    "callbacks",
    "types",
    "masks",
    "custom",
    "subclassed",
    "architectures",
)

# What make test-conformance runs: a case of each kind. The others run only with make test-conformance-all.
CHOSEN = {
    "dense, regularizers", "embedding", "conv 3D", "GRU", "multi-head attention", "batch normalization, synchronized",
    "string lookup", "categorical focal crossentropy", "sparse crossentropy, name", "time steps, ignore_class=-1",
    "circle", "reduction sum", "outputs of two ranks, weights", "an output without a loss", "a rank without any row",
    "no validation rows", "metrics of several numbers", "Adam, amsgrad", "own optimizer", "CosineDecay, warmup",
    "learningRate beside a schedule", "jitCompile, a rank without rows", "MultiOptimizer",
    "EarlyStopping, best weights", "ReduceLROnPlateau", "own callback: stops, on one rank", "LambdaCallback",
    "bool input", "mixed_float16", "LoRA, embedding", "a layer that is not trained", "mask in attention",
    "any length: tags, no mask", "own train_step, weights", "own test_step", "own compute_loss",
    "subclassed classifier, add_loss", "subclassed, mask", "subclassed GAN, validation", "DenseNet",
    "image autoencoder", "siamese, contrastive",
}  # fmt: skip
# Of these kinds, what is not chosen has no validation rows, and one step in a call of TensorFlow.
SMALL = ("layers", "losses", "metrics", "optimizers")
UNEVEN, IDLE = 2 * 16 + 11, 2 * 16 + 5  # rows: 8 and 3 in the last step; 5 and none, in every third case

CASES: dict[str, Case] = {}
for kind in KINDS:
    for case in importlib.import_module(f"tests.conformance.cases_{kind}").CASES:
        assert case.name not in CASES, case.name
        if len(CASES) % 3 == 2 and case.train == UNEVEN and case.split == "even":
            case = replace(case, train=IDLE)
        if case.name not in CHOSEN:
            case = replace(case, more=True, **({"valid": 0, "steps": 1} if kind in SMALL else {}))
        CASES[case.name] = case
assert set(CASES) >= CHOSEN, CHOSEN - set(CASES)
