"""The memory of DGCL: order, overflow, densities as the official code has them, processes that agree, and its state."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch.nn import functional as F

from rc2l.collectives import gather_over_processes
from rc2l.losses.density import local_density
from rc2l.semi.density_memory import DensityMemory
from rc2l.structures.class_ring import choose_entries
from tests.processes import join_group, run_processes
from tests.shared_data import shared_file

K, SIZE, NEIGHBORS = 3, 10, (2, 4)


def bank(size: int = SIZE, refresh: int = 0, neighbors=NEIGHBORS) -> DensityMemory:
    return DensityMemory(K, size, 4, 5, neighbors, refresh)


def entries(labels: list[int], first: int = 0, per_class: int = 8) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """New entries with labels in 0..K (K: none), whose projections are first, first + 1, ...; and which are valid."""
    index, valid = choose_entries(torch.tensor(labels), K, per_class)
    generator = torch.Generator().manual_seed(first)
    number = torch.arange(first, first + len(labels), dtype=torch.float32)
    values = {
        "features": torch.randn(len(labels), 4, generator=generator)[index],
        "projections": number[:, None].expand(-1, 5)[index],
        "density": torch.rand(len(labels), generator=generator)[index],
        "confidence": torch.rand(len(labels), generator=generator)[index],
    }
    return values, valid


def stored(memory: DensityMemory, k: int) -> list[int]:
    """Numbers of the entries of a class, oldest first."""
    count, position = int(memory.count[k]), int(memory.position[k])
    ring = memory.projections[k, :, 0].roll(-position)
    return ring[len(ring) - count :].int().tolist()


def test_entries_keep_their_order_and_the_oldest_go():
    memory = bank()
    memory.update(*entries([0, 1, 0, K, 0, 1]))
    assert [stored(memory, k) for k in range(K)] == [[0, 2, 4], [1, 5], []]
    memory.update(*entries([0] * 6 + [2], first=10))
    assert [stored(memory, k) for k in range(K)] == [[0, 2, 4, 10, 11, 12, 13, 14, 15], [1, 5], [16]]
    memory.update(*entries([0, 0, 1, 0], first=20))
    assert [stored(memory, k) for k in range(K)] == [[4, 10, 11, 12, 13, 14, 15, 20, 21, 23], [1, 5, 22], [16]]
    assert memory.count.tolist() == [10, 3, 1] and memory.position.tolist() == [2, 3, 1]


@pytest.mark.parametrize("number", [10, 11, 25])
def test_of_more_entries_than_places_the_last_stay(number):
    memory = bank()
    memory.update(*entries([0, 0, 0, 1]))
    memory.update(*entries([0] * number, first=100, per_class=30))
    assert stored(memory, 0) == list(range(100 + number - 10, 100 + number)) and stored(memory, 1) == [3]


def test_an_update_without_entries_changes_nothing_but_its_number():
    memory = bank(refresh=3)
    memory.update(*entries([0, 1, 0, 0, 0, 0]))
    before = {name: buffer.clone() for name, buffer in memory.named_buffers()}
    memory.update(entries([K, K, K])[0], torch.zeros(K, 8, dtype=torch.bool))
    after = dict(memory.named_buffers())
    assert int(after.pop("updates")) == int(before.pop("updates")) + 1
    for name in ("features", "projections", "confidence", "count", "position"):
        assert torch.equal(after[name], before[name]), name


def test_entries_that_are_not_finite_are_left_out():
    memory, (new, valid) = bank(), entries([0, 0, 0, 1, 1])
    new["features"][0, 1] = float("nan")
    new["projections"][1, 0] = float("inf")
    memory.update(new, valid)
    assert [stored(memory, k) for k in range(K)] == [[0, 2], [4], []]
    assert all(torch.isfinite(buffer.float()).all() for buffer in memory.buffers())


def test_density_is_known_once_there_are_enough_neighbors():
    memory = bank()
    memory.update(*entries([0, 0, 0, 1]))
    assert (memory.memory().density == float("-inf")).all()
    memory.update(*entries([0, 0]))  # measured against three entries only
    assert (memory.memory().density == float("-inf")).all() and (memory.density == 0).all()
    new = entries([0, 1], first=7)
    memory.update(*new)  # measured against five
    assert memory.memory().density[0].isfinite().nonzero()[:, 0].tolist() == [5]
    assert memory.density[0, 5] == new[0]["density"][0, 0] and memory.measured[0, 5] == 2
    assert (memory.memory().density[1] == float("-inf")).all()


def test_refreshing_measures_unknown_and_oldest_densities_without_the_entry_itself():
    memory = bank(refresh=2)
    memory.update(*entries([0] * 4 + [1]))
    assert (memory.measured == -1).all()  # three others are too few
    memory.update(*entries([0] * 3, first=10))
    assert memory.measured[0].tolist() == [1, 1, -1, -1, 1, 1, 1, -1, -1, -1]
    for update in range(2, 6):
        memory.update(*entries([K, K, K], first=20))
        fresh = (memory.measured[0] == update).nonzero()[:, 0]
        assert len(fresh) == 2
        for place in fresh.tolist():
            others = torch.cat([memory.features[0, :place], memory.features[0, place + 1 : 7]])
            expected = (others @ memory.features[0, place]).sort(descending=True).values
            expected = torch.stack([expected[:k].mean() for k in NEIGHBORS]).mean()
            torch.testing.assert_close(memory.density[0, place], expected)
    assert memory.measured[0, :7].min() >= 2  # all seven have had their turn
    assert (memory.measured[1] == -1).all() and (memory.measured[0, 7:] == -1).all()


def test_choice_of_entries():
    labels = torch.tensor([0, 1, 3, 0, 0, 2, 0, 0])
    index, valid = choose_entries(labels, 4, 5)
    assert valid.sum(1).tolist() == [5, 1, 1, 1]
    assert [row[kept].tolist() for row, kept in zip(index, valid, strict=True)] == [[0, 3, 4, 6, 7], [1], [5], [2]]
    seen = torch.zeros(8)
    for _ in range(200):
        index, valid = choose_entries(labels, 3, 2)
        chosen = index[0][valid[0]].tolist()
        assert len(set(chosen)) == 2 and chosen == sorted(chosen)
        seen[chosen] += 1
    assert (seen[labels == 0] > 50).all() and seen[labels != 0].sum() == 0  # 80 each on average


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    with np.load(shared_file("reference/dgcl.npz")) as file:
        arrays = {key.removeprefix("update/"): torch.as_tensor(file[key]) for key in file.files if key[:7] == "update/"}
        return arrays | {"neighbors": torch.as_tensor(file["k_den_cal"])}


def calls_of(reference: dict[str, torch.Tensor], start: str) -> list[str]:
    """Names of the successive updates that begin with an empty (``a``) or a filled (``b``) bank."""
    calls = [f"{start}{i}" for i in range(len(reference)) if f"{start}{i}/label" in reference]
    assert calls
    return calls


def official_bank(reference: dict[str, torch.Tensor], start: str) -> tuple[DensityMemory, list[list[int]]]:
    """An empty bank of the reference's sizes, and for each class an empty list of its numbers of new entries."""
    K = sum(key.startswith(f"{start}0/after_fts") for key in reference)
    size = int(reference["memory_per_class"])
    channels = (reference[f"{start}0/{name}"].shape[1] for name in ("fts", "rep"))
    return DensityMemory(K, size, *channels, tuple(reference["neighbors"].tolist()), 0), [[] for _ in range(K)]


def official_update(memory: DensityMemory, reference: dict[str, torch.Tensor], call: str) -> None:
    """One update with all labelled pixels of a call, the densities measured as the auxiliary does."""
    K = len(memory.count)
    labels = reference[f"{call}/label"].flatten()
    labels = torch.where(labels == 255, K, labels)
    features, projections = (reference[f"{call}/{name}"].permute(0, 2, 3, 1).flatten(0, 2) for name in ("fts", "rep"))
    density = local_density(features, labels, memory.features, memory.count, memory.neighbors)
    index, valid = choose_entries(labels, K, len(labels))
    new = {"features": features[index], "projections": projections[index], "density": density[index]}
    memory.update(new | {"confidence": torch.ones(index.shape)}, valid)


def newest_call_first(memory: DensityMemory, values: torch.Tensor, k: int, calls: list[int]) -> torch.Tensor:
    """The entries of a class as the official code lays them out: the newest call in front, in row-major order."""
    ring = values[k].roll(-int(memory.position[k]), 0)
    parts = ring.split([len(ring) - sum(calls), *calls])
    return torch.cat(parts[:0:-1])[: int(memory.count[k])]


def test_updates_of_an_empty_bank_store_what_the_official_ones_do(reference):
    """Its densities are all 0 (quirks 18 and 19); ours are measured as soon as there are neighbours enough."""
    memory, calls = official_bank(reference, "a")
    K = len(calls)
    measured = [0] * K
    for call in calls_of(reference, "a"):
        earlier = memory.count.tolist()
        official_update(memory, reference, call)
        for k in range(K):
            calls[k].append(int((reference[f"{call}/label"] == k).sum()))
            expected = F.normalize(reference[f"{call}/after_fts{k}"], dim=1)
            torch.testing.assert_close(newest_call_first(memory, memory.features, k, calls[k]), expected)
            # A class is measured by a call that finds the largest number of neighbours in its memory.
            measured[k] += calls[k][-1] if earlier[k] >= max(memory.neighbors) else 0
    assert [int((memory.measured[k] >= 0).sum()) for k in range(K)] == measured


def test_updates_of_a_filled_bank_equal_the_official_ones(reference):
    memory, calls = official_bank(reference, "b")
    K, size = len(calls), int(reference["memory_per_class"])
    for k in range(K):  # the newest official entry is the first, ours the last
        filled = len(reference[f"b/init_fts{k}"])
        memory.features[k, :filled] = F.normalize(reference[f"b/init_fts{k}"], dim=1).flip(0)
        memory.projections[k, :filled] = reference[f"b/init_proj{k}"].flip(0)
        memory.density[k, :filled] = reference[f"b/init_density{k}"][:filled].flip(0)
        memory.count[k] = filled
        memory.position[k] = filled % size
    for call in calls_of(reference, "b"):
        official_update(memory, reference, call)
        for k in range(K):
            calls[k].append(int((reference[f"{call}/label"] == k).sum()))
            count = int(memory.count[k])
            assert count == len(reference[f"{call}/after_fts{k}"])
            for ours, name in ((memory.features, "fts"), (memory.projections, "proj"), (memory.density, "density")):
                expected = reference[f"{call}/after_{name}{k}"][:count]  # one density too many until it is full
                expected = F.normalize(expected, dim=1) if name == "fts" else expected
                number = sum(calls[k])
                laid_out = newest_call_first(memory, ours, k, calls[k])[:number]
                torch.testing.assert_close(laid_out, expected[:number], atol=1e-5, rtol=1e-5)
                old = ours[k].roll(-int(memory.position[k]), 0)[size - count : size - number].flip(0)
                torch.testing.assert_close(old, expected[number:], atol=1e-5, rtol=1e-5)
        assert (memory.count == size).all() == bool(reference[f"{call}/full"])


def of_rank(rank: int, step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    labels = [[0, 1, 0, K, 0], [2, 2, 0, 1, K]][(rank + step) % 2]
    return entries(labels * 2, first=100 * step + 20 * rank)


def work(rank: int, folder: Path) -> None:
    join_group(rank, 2, folder)
    memory = bank(refresh=2)
    for step in range(3):
        memory.update(*of_rank(rank, step), gather=gather_over_processes)
    torch.save(memory.state_dict(), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_hold_the_bank_of_one_with_the_joined_entries(tmp_path):
    run_processes(work, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    memory = bank(refresh=2)
    for step in range(3):
        ranks = [of_rank(rank, step) for rank in range(2)]
        joined = {name: torch.cat([new[name] for new, _ in ranks], 1) for name in ranks[0][0]}
        memory.update(joined, torch.cat([valid for _, valid in ranks], 1))
    for name, buffer in memory.state_dict().items():
        assert torch.equal(first[name], second[name]) and torch.equal(first[name], buffer), name
    assert memory.count.tolist() == [10, 10, 10] and memory.position.tolist() == [4, 2, 2]


def test_state_is_restored_bit_for_bit():
    straight, resumed = bank(refresh=2), bank(refresh=2)
    for step in range(4):
        straight.update(*of_rank(0, step))
        if step == 1:
            saved = {name: value.clone() for name, value in straight.state_dict().items()}
    resumed.load_state_dict(saved)
    for step in (2, 3):
        resumed.update(*of_rank(0, step))
    for name, buffer in straight.state_dict().items():
        assert torch.equal(buffer, resumed.state_dict()[name]), name


def test_it_says_how_much_memory_it_takes():
    memory = DensityMemory(21, 500, 256, 64, (8, 16, 32), 8)
    assert memory.num_bytes == 21 * 500 * ((256 + 64 + 2) * 4 + 8) + 21 * 16 + 8
    assert str(memory) == (
        "memory bank: 21 classes x 500 entries of 256 + 64 channels, 13 MiB in each process and in each checkpoint"
    )
