"""A preset of keras-hub, without a download: a tiny BERT with random weights."""

from __future__ import annotations

from pathlib import Path

import keras
import keras_hub

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "brown", "fox", "##s", "good", "bad"]


def save_classifier(folder: Path) -> str:
    """Save a classifier of two classes, which reads six words of a text, to a folder; returns its path."""
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(WORDS), num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, dropout=0.0,
        max_sequence_length=8,
    )  # fmt: skip
    tokenizer = keras_hub.tokenizers.BertTokenizer(vocabulary=WORDS, lowercase=True)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=8)
    task = keras_hub.models.BertTextClassifier(backbone, 2, preprocessor, dropout=0.0, activation="softmax")
    task.save_to_preset(str(folder))
    return str(folder)
