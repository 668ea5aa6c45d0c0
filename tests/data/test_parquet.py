"""Parquet folders. `test_a_folder_in_hub_layout` is the example to read first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deepreduce.data import Dataset, load

from .small import encoded, labels_of, misuse, noise, refusal, table, write_parquet


def single(folder: Path, made: pa.Table, name: str = "train-00000-of-00001.parquet") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, folder / name)
    return folder


def plain(**options: object) -> pa.Table:
    return table(noise(20), labels_of(20, 2), **options)  # type: ignore[arg-type]


def images_of(data: Dataset) -> set[bytes]:
    return {image.numpy().tobytes() for split in (data.train, data.validation) for image in split.images}


def test_a_folder_in_hub_layout(source: Path) -> None:
    data = load(str(write_parquet(source)))
    assert data.name == "tiny"
    assert data.classes == ("cat", "dog", "eel", "fox")
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 8)
    assert data.input == (3, 4, 5)
    assert data.notes == ()
    assert np.array_equal(data.test.images, noise(8, seed=9).transpose(0, 3, 1, 2))
    assert data.test.labels.tolist() == labels_of(8, 4)


def test_every_training_row_arrives(source: Path) -> None:
    data = load(str(write_parquet(source)))
    expected = np.concatenate([noise(20, seed=0), noise(20, seed=1)]).transpose(0, 3, 1, 2)
    assert images_of(data) == {image.tobytes() for image in expected}


def test_cached_and_decoded_data_are_the_same(source: Path, tmp_path: Path) -> None:
    write_parquet(source)
    first, second = load(str(source), workers=2), load(str(source))
    fresh = load(str(source), cache=tmp_path / "another")
    for other in (second, fresh):
        assert other.fingerprint == first.fingerprint
        assert other.mean == first.mean
        assert other.notes == first.notes
        for name in ("train", "validation", "test"):
            assert torch.equal(getattr(other, name).images, getattr(first, name).images)
            assert torch.equal(getattr(other, name).labels, getattr(first, name).labels)


def test_the_second_load_decodes_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(str(write_parquet(source)))
    monkeypatch.setattr("deepreduce.data.parquet.decode", None)
    assert len(load(str(source)).test) == 8


def test_a_changed_source_is_decoded_anew(source: Path) -> None:
    first = load(str(write_parquet(source)))
    single(source, table(noise(8, seed=99), labels_of(8, 4)), "test-00000-of-00001.parquet")
    second = load(str(source))
    assert second.fingerprint != first.fingerprint
    assert not torch.equal(second.test.images, first.test.images)


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00001-ab12.parquet", "data/test-00000-of-00001-cd34.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("train/train-0.parquet", "test/test-0.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("default/train/0.parquet", "default/test/0.parquet"),
    ],
)
def test_layouts_that_the_hub_uses(source: Path, names: tuple[str, str]) -> None:
    single(source, plain(), names[0])
    single(source, table(noise(4, seed=3), labels_of(4, 2)), names[1])
    data = load(str(source))
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 4)


@pytest.mark.parametrize("word", ["valid", "validation", "val"])
def test_a_validation_split_serves_as_the_test_split_where_there_is_none(source: Path, word: str) -> None:
    single(source, plain())
    single(source, table(noise(4, seed=3), labels_of(4, 2)), f"{word}-00000-of-00001.parquet")
    data = load(str(source))
    assert len(data.test) == 4
    assert data.notes == (f"the source has no test split: its {word} split serves as the test split",)


def test_a_validation_split_beside_a_test_split_is_left_and_noted(source: Path) -> None:
    single(write_parquet(source), table(noise(4, seed=3), labels_of(4, 4)), "validation.parquet")
    data = load(str(source))
    assert len(data.test) == 8
    assert "own validation split is not used" in data.notes[0]


def test_files_of_no_known_split_are_left_and_noted(source: Path) -> None:
    single(write_parquet(source), plain(), "extra-00000-of-00001.parquet")
    data = load(str(source))
    assert len(data.train) == 36
    assert data.notes == ("left unread, as parquet files of no known split: extra-00000-of-00001.parquet",)
    single(source, plain(), "other-00000-of-00001.parquet")
    assert load(str(source)).notes[0].endswith("extra-00000-of-00001.parquet and 1 more")


def test_a_folder_with_training_images_only(source: Path) -> None:
    data = load(str(single(source, plain())))
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)
    assert "no test split" in data.notes[0]


def test_subsets_enter_notes_and_fingerprint(source: Path) -> None:
    whole = load(str(write_parquet(source)))
    part = load(str(source), classes=2, per_class=5)
    assert part.classes == ("cat", "dog")
    assert (len(part.train), len(part.validation), len(part.test)) == (8, 2, 4)
    assert part.test.labels.tolist() == [0, 1, 0, 1]
    assert part.notes == (
        "a stated subset: the first 2 of 4 classes",
        "a stated subset: 5 training images of each class, before the validation split",
    )
    fingerprints = {whole.fingerprint, part.fingerprint}
    fingerprints |= {load(str(source), classes=2).fingerprint, load(str(source), per_class=5).fingerprint}
    assert len(fingerprints) == 4
    assert images_of(part) < images_of(whole)


@pytest.mark.parametrize("count", [5, 1, 0, -1, True, 2.0])
def test_more_or_fewer_classes_than_possible_are_refused(source: Path, count: int) -> None:
    message = misuse(lambda: load(str(write_parquet(source)), classes=count))
    assert "must lie in [2, 4]" in message and message.endswith("Where: --first-classes.")


def test_more_images_per_class_than_there_are_is_refused(source: Path) -> None:
    assert "ask for 10 or fewer" in misuse(lambda: load(str(write_parquet(source)), per_class=11))


def test_columns_are_found_by_type_where_the_schema_is_silent(source: Path) -> None:
    binary = pa.table({"picture": pa.array([encoded(p) for p in noise(20)]), "animal": ["cat", "dog"] * 10})
    data = load(str(single(source, binary)))
    assert data.classes == ("cat", "dog")


def test_dictionary_strings_are_labels(source: Path) -> None:
    made = plain().drop_columns(["label"]).append_column("label", pa.array(["b", "a"] * 10).dictionary_encode())
    assert load(str(single(source, made))).classes == ("a", "b")


def test_fine_labels_win_over_coarse_ones_and_lose_to_label(source: Path, tmp_path: Path) -> None:
    coarse = plain(label="fine_label", extra={"coarse_label": [0, 0, 1, 1] * 5})
    features = {
        name: {"_type": "ClassLabel", "names": names}
        for name, names in (("fine_label", ["cat", "dog"]), ("coarse_label", ["fish", "fowl"]))
    }
    made = coarse.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    assert load(str(single(source, made))).classes == ("cat", "dog")
    chosen = load(str(source), label_column="coarse_label")
    assert chosen.classes == ("fish", "fowl")
    assert chosen.fingerprint != load(str(source)).fingerprint
    other = plain(extra={"fine_label": [0, 1, 2, 3] * 5})
    assert len(load(str(single(tmp_path / "other", other))).classes) == 2


def test_several_columns_without_a_preference_must_be_named(source: Path) -> None:
    made = plain(label="target", extra={"category": [0, 1] * 10})
    message = refusal(lambda: load(str(single(source, made))))
    assert "2: target, category" in message
    assert "label_column" in message
    assert len(load(str(source), label_column="target").classes) == 2


def test_several_image_columns_must_be_named(source: Path) -> None:
    made = plain(extra={"depth": [encoded(p) for p in noise(20, seed=4)]})
    assert "2: img, depth" in refusal(lambda: load(str(single(source, made))))
    chosen = load(str(source), image_column="depth")
    assert noise(20, seed=4)[0].transpose(2, 0, 1).tobytes() in images_of(chosen) | {
        image.numpy().tobytes() for image in chosen.test.images
    }


@pytest.mark.parametrize("metadata", [b"not json", b"[]", b'{"info": 3}', b'{"info": {"features": [1]}}'])
def test_malformed_metadata_is_as_good_as_none(source: Path, metadata: bytes) -> None:
    made = plain().replace_schema_metadata({b"huggingface": metadata})
    assert load(str(single(source, made))).classes == ("0", "1")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (plain().drop_columns(["img"]), ["one image column", "none among label"]),
        (plain().drop_columns(["label"]), ["one label column", "none among img"]),
        (
            plain(names=["a", "b"]).set_column(0, "img", pa.array(["a.png"] * 20)),
            ["image column must hold encoded images", "'img' of type string"],
        ),
        (plain().set_column(1, "label", pa.array([0.0, 1.0] * 10)), ["must be integers", "'label' of type double"]),
        (plain().set_column(1, "label", pa.array([True, False] * 10)), ["'label' of type bool"]),
        (plain().set_column(1, "label", pa.array([0, None] * 10)), ["(null) for 10 of 20", "row 1"]),
        (plain().set_column(1, "label", pa.array([0, -1] * 10)), ["0 or more", "-1"]),
        (plain(names=["a"]), ["in [0, 0]", "row 1"]),
        (plain(names=["a", "b", "c"]), ["must have a training image", "none of c"]),
        (plain().slice(0, 0), ["zero rows", "train split"]),
        (table([b"junk", *([encoded(noise(1)[0])] * 19)], labels_of(20, 2)), ["1 of 20", "row 0 cannot be decoded"]),
        (table([None, *([encoded(noise(1)[0])] * 19)], labels_of(20, 2)), ["1 of 20", "row 0 has no bytes"]),
        (table(noise(20), [0] * 19 + [1]), ["at least two images", "1 (1)"]),
    ],
)
def test_wrong_files_are_refused(source: Path, made: pa.Table, words: list[str]) -> None:
    message = refusal(lambda: load(str(single(source, made))))
    for word in words:
        assert word in message
    assert "train" in message


def test_rows_are_counted_within_their_file(source: Path) -> None:
    write_parquet(source)
    items = [encoded(image) for image in noise(20)]
    items[7] = b"junk"
    single(source, table(items, labels_of(20, 4), names=["cat", "dog", "eel", "fox"]), "train-00001-of-00002.parquet")  # type: ignore[arg-type]
    message = refusal(lambda: load(str(source)))
    assert "1 of 40 images" in message
    assert "Where: train split, file train-00001-of-00002.parquet, row 7" in message


def test_a_wrong_label_in_the_second_file_is_named_there(source: Path) -> None:
    write_parquet(source)
    labels = labels_of(20, 4)
    labels[3] = 9
    made = table(noise(20), labels, names=["cat", "dog", "eel", "fox"])
    single(source, made, "train-00001-of-00002.parquet")
    assert "file train-00001-of-00002.parquet, row 3" in refusal(lambda: load(str(source)))


def test_a_test_split_without_labels_is_refused(source: Path) -> None:
    write_parquet(source)
    single(source, table(noise(8, seed=9), [-1] * 8), "test-00000-of-00001.parquet")
    message = refusal(lambda: load(str(source)))
    assert "-1, which stands for none, on 8 of 8" in message
    assert "test split, file test-00000-of-00001.parquet, row 0" in message


def test_a_test_split_of_another_size_is_refused(source: Path) -> None:
    single(source, plain())
    single(source, table(noise(4, shape=(6, 6, 3)), labels_of(4, 2)), "test.parquet")
    assert "[3, 4, 5] and [3, 6, 6]" in refusal(lambda: load(str(source)))


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_file_is_named(source: Path, keep: int) -> None:
    write_parquet(source)
    path = source / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(lambda: load(str(source)))
    assert "must be readable and complete" in message
    assert "Where: file train-00001-of-00002.parquet" in message


def test_damaged_pages_are_refused(source: Path) -> None:
    write_parquet(source)
    path = source / "train-00000-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    path.write_bytes(content)
    assert "train-00000-of-00002.parquet" in refusal(lambda: load(str(source)))


def test_a_missing_shard_is_refused(source: Path) -> None:
    write_parquet(source)
    (source / "train-00000-of-00002.parquet").unlink()
    assert "must have all its 2 numbered files. Got: 1 of them" in refusal(lambda: load(str(source)))


def test_shards_of_two_writings_are_refused(source: Path) -> None:
    single(write_parquet(source), plain(), "train-00000-of-00001.parquet")
    assert "files of sets of [1, 2]" in refusal(lambda: load(str(source)))


def test_files_with_other_classes_are_refused(source: Path) -> None:
    write_parquet(source)
    made = table(noise(8), labels_of(8, 4), names=["dog", "cat", "eel", "fox"])
    single(source, made, "test-00000-of-00001.parquet")
    assert "must name the same classes" in refusal(lambda: load(str(source)))


def test_files_with_other_columns_are_refused(source: Path) -> None:
    write_parquet(source)
    single(source, table(noise(8), labels_of(8, 4), image="image"), "test-00000-of-00001.parquet")
    assert "must have the column 'img'" in refusal(lambda: load(str(source)))
    single(source, table(noise(8), ["cat"] * 8), "test-00000-of-00001.parquet")
    assert "column 'label' of type string" in refusal(lambda: load(str(source)))


def test_an_unknown_column_has_near_misses(source: Path) -> None:
    write_parquet(source)
    assert "'imag' (did you mean img?)" in refusal(lambda: load(str(source), image_column="imag"))
    assert "did you mean label?" in refusal(lambda: load(str(source), label_column="labels"))
    assert "must hold encoded images" in refusal(lambda: load(str(source), image_column="label"))
    assert "must be integers" in refusal(lambda: load(str(source), label_column="img"))


def test_no_training_split_is_refused(source: Path) -> None:
    single(source, plain(), "test.parquet")
    message = refusal(lambda: load(str(source)))
    assert "must have a training split" in message
    assert "the splits test" in message
    (source / "test.parquet").rename(source / "pictures.parquet")
    assert "no split at all" in refusal(lambda: load(str(source)))


def test_two_names_for_one_split_are_refused(source: Path) -> None:
    single(source, plain())
    for name in ("val.parquet", "valid.parquet"):
        single(source, plain(), name)
    assert "two: val and valid" in refusal(lambda: load(str(source)))


def test_two_data_sets_in_one_folder_are_refused(source: Path) -> None:
    for name in ("small", "large"):
        single(source, plain(), f"{name}/train.parquet")
    message = refusal(lambda: load(str(source)))
    assert "splits in 2 places: large, small" in message
    assert len(load(str(source / "small")).classes) == 2


def test_a_path_inside_a_parquet_file_is_never_followed(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(noise(1)[0]))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": str(secret)}] * 20, kind)
    message = refusal(lambda: load(str(single(source, pa.table({"img": rows, "label": labels_of(20, 2)})))))
    assert "has no bytes (null)" in message
