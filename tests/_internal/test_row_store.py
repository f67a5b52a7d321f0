from pathlib import Path

import pytest
import torch

from petm._internal.row_store import row_store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("budget", [1 << 20, 0], ids=["memory", "file"])
def test_rows_are_read_as_they_were_written(dtype: torch.dtype, budget: int, tmp_path: Path) -> None:
    rows = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    with row_store(20, 7, dtype, budget=budget, folder=tmp_path) as store:
        for start in (12, 0):  # in any order; what is no whole in memory too
            store.write(start, rows.T.contiguous().T[start : start + 12])
        for indices in ([3, 19, 3], torch.tensor([11, 0]), range(20), []):
            found = store.read(indices)
            assert found.dtype == dtype
            assert torch.equal(found, rows.to(dtype)[torch.as_tensor(indices, dtype=torch.int64)])
            assert found.shape == (len(indices), 7)


def test_the_budget_says_where_rows_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petm._internal.row_store.ScratchFile", None)
    with row_store(10, 3, torch.float32, budget=120, folder=tmp_path / "absent") as store:
        store.write(0, torch.ones(10, 3))
    with pytest.raises(TypeError), row_store(10, 3, torch.float32, budget=119, folder=tmp_path):
        pass


def test_what_is_read_belongs_to_the_reader(tmp_path: Path) -> None:
    for budget in (1 << 10, 0):
        with row_store(2, 3, torch.float32, budget=budget, folder=tmp_path) as store:
            store.write(0, torch.zeros(2, 3))
            store.read([1]).fill_(7)
            assert not store.read([1]).any()
