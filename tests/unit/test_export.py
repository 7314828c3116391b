"""What an exported file computes beside the network: Spark ML's columns, pixels of files; and what errors name."""

import io

import numpy as np
import pytest
from PIL import Image

from cos_ml import exporting
from cos_ml.data.columns import Column
from cos_ml.errors import ExportError, SetupError
from cos_ml.exports import formats, graph, pixels, run
from cos_ml.exports.signature import Source, named
from cos_ml.network import outputs
from cos_ml.network.keras_import import import_tensorflow
from cos_ml.network.outputs import OutputKind
from cos_ml.sources.pixels import ImageSpec, decode_image

pytestmark = pytest.mark.once

RANDOM = np.random.default_rng(0)
LOGITS = np.concatenate([RANDOM.normal(0, 3, (20, 3)), [[np.nan, 1, 2], [90, -90, 0]]]).astype(np.float32)
PROBABILITIES = np.exp(LOGITS - LOGITS.max(1, keepdims=True))
PROBABILITIES /= PROBABILITIES.sum(1, keepdims=True)


@pytest.mark.parametrize("kind", OutputKind)
@pytest.mark.parametrize("thresholds", [(), (0.1, 5.0, 0.3), (0.0, 1.0, 2.0)])
def test_columns_are_those_of_transform(kind, thresholds):
    single = kind in (OutputKind.PROBABILITY, OutputKind.LOGIT, OutputKind.NUMBER)
    values = PROBABILITIES if kind in (OutputKind.CLASS_PROBABILITIES, OutputKind.PROBABILITY) else LOGITS
    values = values[:, :1] if single else values
    limits = thresholds[: 2 if single else 3]
    expected = outputs.predictions(kind, values, limits)
    found = graph.predictions(kind, import_tensorflow().constant(values), limits)
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        np.testing.assert_allclose(found[name].numpy(), one, rtol=1e-5, atol=1e-6, err_msg=name)


def picture(width, height, mode="RGB"):
    """A smooth picture with edges, as photographs are."""
    small = RANDOM.integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def file_of(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("resize", ["stretch", "crop", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_pillows(resize, channels):
    spec = ImageSpec(20, 31, channels, resize, "uint8")
    files = [
        file_of(picture(97, 61), "PNG"),
        file_of(picture(40, 50, "L"), "PNG"),
        file_of(picture(33, 200, "RGBA"), "PNG"),
        file_of(picture(64, 48, "P"), "GIF"),
        file_of(picture(45, 77), "BMP"),
        file_of(picture(90, 71), "WEBP", lossless=True),
        file_of(picture(70, 47), "JPEG"),
        file_of(picture(611, 397), "JPEG", quality=95),  # decoded at a quarter of its size
        file_of(picture(300, 45, "L"), "JPEG"),
    ]
    files += [] if resize == "none" else [file_of(picture(9, 7), "PNG")]
    expected = [decode_image(data, spec).astype(int) for data in files]
    found = pixels.decode_files(import_tensorflow().constant(files), spec).numpy()
    for place, (one, other) in enumerate(zip(expected, found, strict=True)):
        np.testing.assert_array_equal(other, one, err_msg=f"file {place}")


def test_names_that_tensorflow_does_not_take():
    columns = ["petal length (cm)", "1st", "x"]
    feeds = [[Source(name, Column(name, "x0"))] for name in columns]
    assert [one.name for (one,) in named(feeds)] == ["petal_length__cm_", "arg_1st", "x"]
    with pytest.raises(ExportError, match=r"\['a b', 'a.b'\] would be inputs of the same name 'a_b'"):
        named([[Source(name, Column(name, "x0"))] for name in ("a b", "a.b")])


def test_places_in_a_graph_are_those_of_layers():
    layers = ["text", "head", "head/dense_1", "dense"]
    assert formats.layer_at("serve/sequential_8_1/text_1/StringLower", layers) == "text"
    assert formats.layer_at("model/head_2/dense_1_1/Erfc", layers) == "head/dense_1"
    assert formats.layer_at("model/other/Gather", layers) == ""


def test_a_missing_package_is_an_error_with_its_command(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r'ai-edge-litert, which is not installed: pip install "cos-ml\[litert\]"'):
        formats.check_installed(formats.FORMATS["litert"])
    formats.check_installed(formats.FORMATS["saved_model"])


def test_strings_pass_between_processes_with_zeros_at_their_end(tmp_path):
    given = {"a/b": np.array([b"x\0\0", b""], object), "c": np.array([["ä", "b"]]), "d": np.eye(2)}
    run.write(str(tmp_path / "x.npz"), given)
    found = run.read(str(tmp_path / "x.npz"))
    assert found["a/b"].tolist() == [b"x\0\0", b""]
    assert found["c"].tolist() == [["ä".encode(), b"b"]]
    np.testing.assert_array_equal(found["d"], np.eye(2))


def test_a_file_that_can_not_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"new")
    old = tmp_path / "model.onnx"
    old.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.stores, "write_whole", full)
    with pytest.raises(OSError, match="No space"):
        exporting._place(tmp_path / "new", str(old))
    monkeypatch.undo()
    assert old.read_bytes() == b"old"
    exporting._place(tmp_path / "new", str(old))
    assert old.read_bytes() == b"new"
