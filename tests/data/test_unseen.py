import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_folders import QUESTIONS
from image_files import write_images
from petm.data.base import Data, Joined, TensorData
from petm.data.fields import Fields
from petm.data.opening import open_data
from petm.data.unseen import distinct, hold_out, refuse_review_queue, sample_hashes, separate
from petm.errors import DataError, PetmWarning


def test_a_sample_has_one_hash_however_it_is_held(digits: tuple[Data, ...]) -> None:
    pixels = torch.randint(0, 256, (50, 1, 28, 28), dtype=torch.uint8)
    held, floats = TensorData(pixels), TensorData(pixels.float() / 255)
    assert (sample_hashes(held) == sample_hashes(floats)).all()
    assert (sample_hashes(held.subset([7, 3])) == sample_hashes(held)[[7, 3]]).all()
    assert len(set(sample_hashes(digits[0]))) == len(digits[0])
    changed = (pixels.float() / 255).clone()
    changed[4, 0, 27, 27] += 1e-4
    assert (sample_hashes(TensorData(changed)) != sample_hashes(floats)).nonzero()[0].tolist() == [4]


def test_padding_does_not_count() -> None:
    def texts(length: int, *, left: bool) -> TensorData:
        ids, mask = torch.zeros(2, length, dtype=torch.int64), torch.zeros(2, length, dtype=torch.int32)
        for row, tokens in enumerate(([5, 6, 7], [8, 9])):
            place = slice(length - len(tokens), length) if left else slice(0, len(tokens))
            ids[row, place], mask[row, place] = torch.tensor(tokens), 1
        return TensorData(Fields({"input_ids": ids, "attention_mask": mask}))

    expected = sample_hashes(texts(5, left=False))
    assert expected[0] != expected[1]
    for other in (texts(9, left=False), texts(9, left=True), texts(3, left=False)):
        np.testing.assert_array_equal(sample_hashes(other), expected)


def test_seen_samples_are_left_out_and_copies_count_once(digits: tuple[Data, ...]) -> None:
    train, fresh = digits[0].subset(range(200)), digits[2].subset(range(100))
    mixed = Joined(fresh, train.subset(range(40)), fresh.subset(range(30)), train.subset(range(10)))
    found = separate(train, mixed)
    assert (found.seen, found.repeated, len(found.calibration)) == (50, 30, 100)
    np.testing.assert_array_equal(sample_hashes(found.calibration), sample_hashes(fresh))
    assert torch.equal(found.calibration.labels, fresh.labels)
    assert separate(train, fresh).calibration is fresh
    with pytest.raises(DataError, match=r"^calibration: .* 101 of 201 "):
        separate(train, Joined(fresh, train.subset(range(101))))
    assert separate(train, Joined(fresh, train.subset(range(100)))).seen == 100
    ten = distinct(fresh.subset(torch.arange(100).repeat(10)))
    assert (ten.repeated, len(ten.calibration)) == (900, 100)


def test_all_copies_of_a_sample_are_held_out_together(digits: tuple[Data, ...]) -> None:
    once = digits[0].subset(range(300))
    plain = hold_out(once, 0.2, seed=3)
    for part, expected in zip((plain.data, plain.calibration), once.split((0.8, 0.2), seed=3), strict=True):
        assert torch.equal(part.labels, expected.labels)
    copied = hold_out(once.subset(torch.arange(300).repeat(4)), 0.2, seed=3)
    kept, held = sample_hashes(copied.data), sample_hashes(copied.calibration)
    assert not np.isin(held, kept).any()
    assert len(held) == len(set(held)) == len(plain.calibration)
    assert len(kept) == 4 * (300 - len(held))
    assert copied.repeated == 3 * len(held)


def test_too_few_samples_to_hold_some_out_are_refused(digits: tuple[Data, ...]) -> None:
    with pytest.raises(DataError, match=r"^data: expected samples enough"):
        hold_out(digits[0].subset([0, 1]), 0.2, seed=0)


def test_of_equal_inputs_with_several_labels_one_is_drawn_and_told() -> None:
    x = torch.arange(2000).float().repeat(2)[:, None]
    labels = torch.cat([torch.zeros(2000), torch.ones(2000)]).long()  # as of folders, one after the other
    data = TensorData(x, labels, source="mine")
    others = TensorData(-1 - x, labels)
    for found in (
        lambda: distinct(data),
        lambda: separate(others.subset(range(9)), data),
        lambda: hold_out(data, 0.5, seed=0),
    ):
        with pytest.warns(PetmWarning, match=r"^(data|calibration): .* several for 2,000 of 2,000 .* mine"):
            kept = found().calibration
        assert len(set(sample_hashes(kept))) == len(kept) >= 900
        assert kept.labels.float().mean() == pytest.approx(0.5, abs=0.06)


def test_zero_has_one_hash_whatever_its_sign() -> None:
    x = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, -1.0]])
    for data in (TensorData(x), TensorData(Fields({"x": x}))):
        hashes = sample_hashes(data)
        assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_labels_from_a_review_queue_are_no_calibration_set(tmp_path: Path, kind: str) -> None:
    rows = [
        {"input": text, "sha256": str(n), "label": 1, "label_name": "b", "confirmed": n % 2 == 0, "predicted": 0,
         "suspicion": 0.5, "grade": "suspect", "text": text}
        for n, (text, _) in enumerate(QUESTIONS)
    ]  # fmt: skip
    plain = [{"text": row["text"], "label": row["label"]} for row in rows]
    for name, content, refused in (("reviewed", rows, True), ("drawn", plain, False)):
        file = tmp_path / f"{name}.{kind}"
        if kind == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            keys = list(content[0])
            lines = [keys, *([row[key] for key in keys] for row in content)]
            file.write_text("".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines))
        data = TensorData(torch.zeros(4, 1), source=f"other.csv + {file}")
        if refused:
            with pytest.raises(DataError, match=r"^calibration: "):
                refuse_review_queue(data.subset(range(2)))
        else:
            refuse_review_queue(data)


def test_images_beside_a_review_queue_are_no_calibration_set(tmp_path: Path, digits: tuple[Data, ...]) -> None:
    folder = tmp_path / "labels.jsonl.images"
    write_images(digits[0], range(10), folder)
    refuse_review_queue(open_data(folder))
    (tmp_path / "labels.jsonl").write_text('{"sha256": "0", "label": 1, "confirmed": true, "suspicion": 0.5}\n')
    with pytest.raises(DataError, match=r"^calibration: "):
        refuse_review_queue(open_data(folder).in_memory())
