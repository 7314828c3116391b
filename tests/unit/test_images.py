import io
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cos_ml.errors import InvalidInputError, SetupError
from cos_ml.images import ImageAssembler, preprocessing_layers
from cos_ml.network.keras_import import import_keras
from cos_ml.sources import pixels
from cos_ml.sources.pixels import ImageSpec, decode_batches, decode_image, decode_raw

keras = import_keras()

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (6, 8, 3), np.uint8)


def file_of(pixels, kind="PNG", **options):
    """The bytes of an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def spec(height=6, width=8, channels=3, resize="stretch", output_type="uint8"):
    return ImageSpec(height, width, channels, resize, output_type)


def assemble(rows, image_spec=None, handle_invalid="error"):
    """What a scoring task makes of these batches."""
    batches = [(pa.array(batch, pa.binary()),) for batch in rows]
    return list(decode_batches(image_spec or spec(), "data", handle_invalid, iter(batches)))


# ── decoding ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_pixels_of_the_right_size_stay_as_they_are(kind):
    assert (decode_image(file_of(PIXELS, kind), spec()) == PIXELS).all()


def test_a_jpeg_is_near():
    smooth = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[:, None], (64, 1, 3)).reshape(64, 64, 3)
    found = decode_image(file_of(smooth, "JPEG", quality=95), spec(64, 64))
    assert np.abs(found.astype(int) - smooth).max() < 10


def test_a_large_jpeg_that_decodes_at_a_part_of_its_size_is_near_the_whole():
    columns = np.linspace(0, 255, 1024).astype(np.uint8)
    smooth = np.stack([np.tile(columns, (768, 1))] * 3, axis=-1)
    found = decode_image(file_of(smooth, "JPEG", quality=95), spec(48, 64))
    expected = smooth.reshape(48, 16, 64, 16, 3).mean(axis=(1, 3))
    assert np.abs(found - expected).max() < 4


def test_gray_is_forced():
    found = decode_image(file_of(PIXELS), spec(channels=1))
    expected = PIXELS @ [0.299, 0.587, 0.114]  # ITU-R 601, as JPEG and OpenCV have it
    assert found.shape == (6, 8, 1)
    assert np.abs(found[..., 0] - expected).max() <= 1


def test_color_is_forced():
    gray = PIXELS[..., 0]
    assert (decode_image(file_of(gray), spec()) == gray[..., None]).all()


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "1"])
def test_other_modes_are_converted(mode):
    data = file_of(Image.fromarray(PIXELS).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    assert decode_image(data, spec()).shape == (6, 8, 3)


def test_transparency_is_dropped():
    alpha = RANDOM.integers(0, 256, (6, 8, 1), np.uint8)
    assert (decode_image(file_of(np.concatenate([PIXELS, alpha], axis=-1)), spec()) == PIXELS).all()


def test_of_sixteen_bits_the_upper_eight_are_kept():
    deep = PIXELS[..., 0].astype(np.uint16) * 256 + 7
    assert (decode_image(file_of(deep), spec(channels=1))[..., 0] == PIXELS[..., 0]).all()


def test_stretch_takes_all_of_the_image():
    halves = np.zeros((20, 40, 3), np.uint8)
    halves[:, 20:] = 200
    found = decode_image(file_of(halves), spec(10, 10))
    assert (found[:, :4] == 0).all()
    assert (found[:, 6:] == 200).all()


def test_crop_keeps_the_middle_and_the_aspect():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    assert (decode_image(file_of(wide), spec(10, 10, resize="crop"))[:, 1:-1] == 200).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_crop_takes_a_whole_side_where_division_rounds_up(transposed):
    assert 7 / 25 * 25 > 7
    pixels = RANDOM.integers(0, 256, (21, 7, 3), np.uint8)
    expected = Image.fromarray(pixels[7:14]).resize((25, 25), Image.Resampling.BILINEAR)
    expected, pixels = (np.swapaxes(one, 0, 1) if transposed else np.asarray(one) for one in (expected, pixels))
    found = decode_image(file_of(np.ascontiguousarray(pixels)), spec(25, 25, resize="crop"))
    assert np.abs(found[:, 5:-5] - expected[:, 5:-5].astype(int))[5:-5].max() <= 1  # the middle, away from borders


def test_without_resizing_the_middle_is_cut_out():
    assert (decode_image(file_of(PIXELS), spec(4, 4, resize="none")) == PIXELS[1:5, 2:6]).all()


def test_without_resizing_a_smaller_image_is_refused():
    with pytest.raises(ValueError, match="8x6 pixels, less than 8x7"):
        decode_image(file_of(PIXELS), spec(7, 8, resize="none"))


def test_formats_that_run_other_programs_are_not_opened():
    with pytest.raises(OSError, match="cannot identify"):
        decode_image(file_of(PIXELS, "EPS"), spec())


# ── Spark's image struct ──────────────────────────────────────────────────────────────────────────────────────────────


def struct_of(pixels, depth=0):
    """The fields of Spark's struct but its origin, in the order of ``decode_raw``, for red, green, blue, opacity."""
    height, width, channels = pixels.shape
    order = [2, 1, 0, 3][:channels] if channels > 1 else [0]
    return pixels[..., order].tobytes(), height, width, channels, depth + 8 * (channels - 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["stretch", "crop", "none"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_decoded_image_gives_what_its_file_gives(mode, resize, channels):
    image = Image.fromarray(RANDOM.integers(0, 256, (14, 11, 4), np.uint8)).convert(mode)
    decoded = struct_of(np.asarray(image).reshape(14, 11, -1))
    for height, width in [(14, 11), (7, 9)]:
        wanted = spec(height, width, channels, resize)
        assert (decode_raw(*decoded, wanted) == decode_image(file_of(image), wanted)).all()


def test_of_sixteen_bits_of_a_struct_the_upper_eight_are_kept():
    deep = PIXELS.astype("<u2") * 256 + 7
    assert (decode_raw(*struct_of(deep, depth=2), spec()) == PIXELS).all()


@pytest.mark.parametrize(
    ("struct", "message"),
    [
        ((b"", -1, -1, -1, -1), "Spark's reader could not decode the file"),
        (struct_of(PIXELS.astype("f4"), depth=5), r"CV_32FC3 \(mode 21\), which have no known range"),
        (struct_of(PIXELS.view("i1"), depth=1), r"CV_8SC3 \(mode 17\)"),
        ((PIXELS.tobytes()[1:], 6, 8, 3, 16), "143 bytes are not 6 x 8 pixels of 3 channels of mode 16"),
        ((PIXELS.tobytes(), 6, 8, 3, 24), "of mode 24: expected 1, 3 or 4 channels"),
        ((PIXELS.tobytes(), 6, 12, 2, 8), "of 2 channels"),
        ((b"", 0, 8, 3, 16), "0 bytes are not 0 x 8 pixels"),
        ((None, -1, -1, -1, -1), "is null"),
    ],
)
def test_a_struct_that_is_no_image(struct, message):
    arrays = [pa.array([value]) for value in struct]
    with pytest.raises(InvalidInputError, match=message):
        list(decode_batches(spec(), "image", "error", iter([arrays]), decode=decode_raw))
    (kept,) = decode_batches(spec(), "image", "keep", iter([arrays]), decode=decode_raw)
    assert kept.to_pylist() == [None]


# ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_uint8_values_are_bytes_row_by_row():
    ((value,),) = assemble([[file_of(PIXELS)]])
    assert value.as_py() == PIXELS.tobytes()


def test_float_values_are_the_same_numbers():
    ((value,),) = assemble([[file_of(PIXELS)]], spec(output_type="float"))
    assert (np.asarray(value.as_py()) == PIXELS.reshape(-1)).all()


def test_large_batches_come_out_in_small_ones(monkeypatch):
    monkeypatch.setattr(pixels, "BATCH_BYTES", 2 * PIXELS.nbytes + 1)
    data = file_of(PIXELS)
    assert [len(images) for images in assemble([[data] * 5, [], [data]])] == [2, 2, 1, 1]


def bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 47)  # at twice as many Pillow raises, and below it warns
    return file_of(PIXELS)


@pytest.mark.parametrize("output_type", ["uint8", "float"])
def test_bad_rows_are_null_and_the_rest_is_there(monkeypatch, output_type):
    good = file_of(PIXELS[:5])
    rows = [good, None, b"", b"no image", good[:60], bomb(monkeypatch), file_of(np.zeros((60, 80, 3), np.uint8)), good]
    (images,) = assemble([rows], spec(output_type=output_type), handle_invalid="keep")
    assert images.is_null().to_pylist() == [False, *[True] * 6, False]


@pytest.mark.parametrize(
    ("bad", "message"),
    [(None, "is null"), (b"no image", "UnidentifiedImageError"), (file_of(PIXELS)[:60], "can't be decoded")],
)
def test_an_error_names_column_and_row(monkeypatch, bad, message):
    monkeypatch.setattr(pixels, "BATCH_BYTES", 2 * PIXELS.nbytes)
    good = file_of(PIXELS)
    with pytest.raises(InvalidInputError, match=rf"column 'data', row 4: .*{message}.*handleInvalid=\"skip\""):
        assemble([[good], [good, good, good, bad]])


def test_a_decompression_bomb_is_an_error(monkeypatch):
    with pytest.raises(InvalidInputError, match="DecompressionBombWarning"):
        assemble([[bomb(monkeypatch)]])


def test_without_pillow_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SetupError, match=r'pip install "cos-ml\[images\]"'):
        assemble([[b""]], handle_invalid="keep")


# ── Params ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_defaults_and_setters():
    stage = ImageAssembler(height=4, width=5).setChannels(1).setResize("crop").setOutputCol("pixels")
    assert (stage.getHeight(), stage.getWidth(), stage.getChannels(), stage.getResize()) == (4, 5, 1, "crop")
    assert (stage.getInputCol(), stage.getOutputCol(), stage.getOutputType()) == ("data", "pixels", "uint8")
    assert stage.getHandleInvalid() == "error"


@pytest.mark.parametrize(
    ("name", "value"),
    [("height", 0), ("width", 2.5), ("channels", 4), ("channels", True), ("channels", [3]), ("resize", "fill"),
     ("outputType", "int"), ("handleInvalid", "drop")],
)  # fmt: skip
def test_wrong_params_are_refused(name, value):
    with pytest.raises(InvalidInputError, match=f"Param {name}"):
        ImageAssembler(**{name: value})


# ── layers ────────────────────────────────────────────────────────────────────────────────────────────────────────────

MEAN, SCALE = [123.0, 117.0, 104.0], 0.017


def network(shape=(9, 8, 3), **options):
    return keras.Sequential([keras.Input(shape, dtype="uint8"), *preprocessing_layers(**options)])


def caffe(batch, crop, mean, scale, places=None, mirrored=None):
    """What Caffe's DataTransformer computes, image by image: crop, mirror, subtract, multiply."""
    height, width = crop
    out = np.empty((len(batch), *crop, batch.shape[-1]), np.float32)
    for row, image in enumerate(batch):
        top, left = places[row] if places else ((image.shape[0] - height) // 2, (image.shape[1] - width) // 2)
        cut = image[top : top + height, left : left + width]
        cut = cut[:, ::-1] if mirrored and mirrored[row] else cut
        out[row] = (cut - np.float32(mean)) * np.float32(scale)
    return out


@pytest.mark.parametrize("mean", [MEAN, 33.0, 0])
@pytest.mark.parametrize("crop", [(4, 5), (9, 5), (5, 8), (9, 8)])
def test_inference_is_caffe_s(mean, crop):
    batch = RANDOM.integers(0, 256, (4, 9, 8, 3), np.uint8)
    model = network(size=(9, 8), crop=crop, mirror=True, mean=mean, scale=SCALE)
    assert model.output_shape == (None, *crop, 3)
    np.testing.assert_allclose(model(batch, training=False), caffe(batch, crop, mean, SCALE), atol=1e-5)


def test_training_crops_and_mirrors_each_image_by_itself_and_anywhere_inside():
    image = np.arange(9 * 8 * 3).reshape(9, 8, 3).astype(np.uint8)
    batch = np.repeat(image[None], 400, axis=0)
    model = network(size=(9, 8), crop=(6, 6), mirror=True, mean=MEAN, scale=SCALE)
    found = model(batch, training=True).numpy()
    choices = [((top, left), mirrored) for top in range(4) for left in range(3) for mirrored in (False, True)]
    places, mirrored = zip(*choices, strict=True)
    expected = caffe(batch[: len(choices)], (6, 6), MEAN, SCALE, places, mirrored)
    hits = np.isclose(found[:, None], expected[None], atol=1e-5).all(axis=(2, 3, 4))
    assert (hits.sum(axis=1) == 1).all()  # each is a crop of the image, and no pixel comes from outside
    assert hits.any(axis=0).all()  # and each crop is there


def test_the_layers_are_saved_with_the_network_and_load_in_safe_mode(tmp_path):
    batch = RANDOM.integers(0, 256, (4, 9, 8, 3), np.uint8)
    model = network(size=(9, 8), crop=6, mirror=True, mean=MEAN, scale=SCALE)
    model.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras", safe_mode=True)
    assert (loaded(batch, training=False).numpy() == model(batch, training=False).numpy()).all()


def test_without_arguments_pixels_become_floats():
    batch = RANDOM.integers(0, 256, (2, 9, 8, 3), np.uint8)
    assert (network()(batch).numpy() == batch.astype(np.float32)).all()


@pytest.mark.parametrize("options", [{"crop": 4}, {"crop": (4, 9), "size": (9, 8)}, {"crop": 0, "size": (9, 8)}])
def test_a_crop_needs_a_size_that_it_fits_into(options):
    with pytest.raises(InvalidInputError, match="crop"):
        preprocessing_layers(**options)
