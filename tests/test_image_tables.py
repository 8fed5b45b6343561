"""Images in Parquet files and TFRecords, as Hugging Face and TensorFlow Datasets publish them."""

import io
import os
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPO

pytest.importorskip("PIL", reason="needs the extra vidpress[train]")

from PIL import Image

from vidpress.model.images import tables
from vidpress.model.images.files import ImageDataError
from vidpress.model.records.examples import serialize_record
from vidpress.model.records.tfrecord import write_tfrecords

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)
LABELS = [3, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
NUM_TRAIN = 8


def encoded(pixels, kind="png"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PNGS = [encoded(pixels) for pixels in PIXELS]


def write_splits(folder, write):
    """Write the images as two files of a kind."""
    for split, part in (("train", slice(NUM_TRAIN)), ("test", slice(NUM_TRAIN, None))):
        write(folder, split, PNGS[part], LABELS[part])
    return folder


def hugging_face(image="image", label="label"):
    def write(folder, split, images, labels):
        structs = [{"bytes": each, "path": None} for each in images]
        table = pa.table({label: labels, "coarse_label": [0] * len(labels), image: structs})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=3)

    return write


def tensorflow_datasets(image="image", label="label", name="cifar10-{}.tfrecord-00000-of-00001"):
    def write(folder, split, images, labels):
        with (folder / name.format(split)).open("wb") as file:
            records = zip(images, labels, strict=True)
            write_tfrecords(file, [serialize_record({"id": b"n", image: png, label: [c]}) for png, c in records])

    return write


def check(source, load=tables.load_cifar10):
    training, test = load(source)
    np.testing.assert_array_equal(np.concatenate([training.images, test.images]), PIXELS)
    assert (training.labels.tolist(), test.labels.tolist()) == (LABELS[:NUM_TRAIN], LABELS[NUM_TRAIN:])
    assert training.fingerprint["sha256"] != test.fingerprint["sha256"]
    return training, test


@pytest.mark.parametrize(
    ("write", "load"),
    [
        (hugging_face(), tables.load_cifar10),
        (hugging_face("img", "fine_label"), tables.load_cifar100),
        (tensorflow_datasets(), tables.load_cifar10),
        (tensorflow_datasets("image/encoded", "image/class/label", "cifar10_{}.tfrecord"), tables.load_cifar100),
    ],
)
def test_published_forms_are_read(tmp_path, write, load):
    training, test = check(write_splits(tmp_path, write), load)
    assert (training.fingerprint["files"], training.fingerprint["labelled_images"]) == (1, NUM_TRAIN)
    assert "test" in test.fingerprint["first_file"]


def one_table(path, **columns):
    split = ["train"] * NUM_TRAIN + ["test"] * (len(PNGS) - NUM_TRAIN)
    table = {"split": pa.array(split).dictionary_encode(), "label": pa.array(LABELS, pa.uint8()), "image": PNGS}
    pq.write_table(pa.table({name: column for name, column in (table | columns).items() if column is not None}), path)
    return path


def test_a_column_says_which_split_an_image_is_of(tmp_path):
    check(one_table(tmp_path / "images.parquet"))
    check(tmp_path)


def test_small_losses_of_a_jpeg_and_grey_images_are_no_errors(tmp_path):
    smooth = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None] * 7, (32, 32))
    images = [encoded(smooth, "jpeg"), *PNGS[1:]]
    training, _ = tables.load_cifar10(one_table(tmp_path / "images.parquet", image=images))
    assert np.abs(training.images[0].astype(int) - smooth[..., None]).max() < 8


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": None}, "has no column image or img or image/encoded, only label, split: rename it so"),
        ({"label": None}, "has no column label or fine_label"),
        ({"label": [*LABELS[:-1], 10]}, "image 11: its label is 10, but there are 10 classes"),
        ({"label": [*LABELS[:-1], None]}, "1 rows of the column label have no class"),
        ({"label": list("abcdefghijkl")}, "the column label is of string: it must be of integers"),
        ({"image": list("abcdefghijkl")}, "the column image is of string: it must be binary"),
        ({"image": [None, *PNGS[1:]]}, "1 rows of the column image have no bytes"),
        ({"image": [PNGS[0], PNGS[1][:200], *PNGS[2:]]}, "image 1: its 200 bytes are no image that Pillow can decode"),
        ({"image": [b"GIF", *PNGS[1:]]}, "image 0: its 3 bytes are no image"),
        ({"image": [encoded(PIXELS[0, :20]), *PNGS[1:]]}, "image 0: it has 32 x 20 pixels: it must have 32 x 32"),
        ({"split": ["train"] * 11 + ["dev"]}, "image 11: its split is 'dev': it must be 'train' or 'test'"),
        ({"split": ["train"] * 12}, "no image is of the split 'test'"),
        ({"split": None}, "neither a column 'split' nor the file's name says"),
    ],
)
def test_bad_columns_are_named(tmp_path, columns, message):
    with pytest.raises(ImageDataError, match=message) as found:
        tables.load_cifar10(one_table(tmp_path / "images.parquet", **columns))
    assert str(tmp_path) in str(found.value)
    assert "\n" not in str(found.value)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ImageDataError, match=r"train\.parquet cannot be read as Parquet"):
        tables.load_cifar10(tmp_path)
    path.unlink()
    write_splits(tmp_path, tensorflow_datasets())
    (path,) = tmp_path.glob("*train*")
    whole = path.read_bytes()
    for damaged, message in [
        (whole[:-1], "file ends within a record of"),
        (whole[:40] + b"~" + whole[41:], "byte 0: .*checksum"),
        (b"", "no image is of the split 'train'"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(ImageDataError, match=message):
            tables.load_cifar10(tmp_path)
    tensorflow_datasets(image="pixels")(tmp_path, "train", PNGS, LABELS)
    with pytest.raises(ImageDataError, match="byte 0 has no feature image or img or image/encoded, only id"):
        tables.load_cifar10(tmp_path)
    tensorflow_datasets(label="image")(tmp_path, "train", PNGS, LABELS)
    with pytest.raises(ImageDataError, match="byte 0: "):
        tables.load_cifar10(tmp_path)
    one_table(tmp_path / "images.parquet")
    with pytest.raises(ImageDataError, match="has both Parquet files and TFRecords"):
        tables.load_cifar10(tmp_path)


def test_a_folder_without_tables_holds_binary_batches(tmp_path):
    with pytest.raises(ImageDataError, match=r"has no file data_batch_1\.bin"):
        tables.load_cifar10(tmp_path)


def test_a_real_table_of_cifar10_is_read():
    path = pathlib.Path(os.environ.get("VIDPRESS_DATA", REPO.parent / "shared" / "data"), "cifar10_jpeg.parquet")
    if not path.is_file():
        pytest.skip(f"needs CIFAR-10 as JPEGs: no {path} (name its folder with VIDPRESS_DATA)")
    training, test = tables.load_cifar10(path)
    assert (training.images.shape, test.images.shape) == ((50_000, 32, 32, 3), (10_000, 32, 32, 3))
    assert set(np.bincount(training.labels)) == {5000}
    assert set(np.bincount(test.labels)) == {1000}
    assert 110 < training.images.mean() < 130
