"""Saves by two ranks: a kill of one or of both at any moment leaves the former checkpoint or the new one, whole."""

import itertools
import os
import resource
import shutil
import signal

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from shiqrun.errors import InputError, TrainingError
from shiqrun.evaluation.checkpoint_bytes import load_plain, write_content
from shiqrun.evaluation.checkpoint_files import (
    load_content,
    map_content,
    read_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from shiqrun.settings import STAMP
from shiqrun.training.sharded_strategy import save_sharded
from tests.support.forks import CONTEXT
from tests.support.killed_saves import die, kill_before

SHAPES = {"odd": (7, 3), "fewer_rows_than_ranks": (1, 5), "even": (64, 64)}


def tensors(step):
    return {name: torch.arange(float(torch.Size(shape).numel())).view(shape) + step for name, shape in SHAPES.items()}


def content(step, mesh=None):
    known = tensors(step)
    if mesh is not None:
        known = {name: distribute_tensor(x, mesh, [Shard(0)]) for name, x in known.items()}
    return {
        "global_step": step,
        "state_dict": known,
        "optimizer_states": [{"state": {0: {"exp_avg": known["odd"], "step": torch.tensor(float(step))}}}],
        STAMP: {"name": "x"},
    }


def saver(rank, folder, steps, kill, pids):
    """One of two ranks that save after each of some steps; it may kill at a moment of the last save."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the other one says when its peer is killed
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    pids[rank] = os.getpid()
    dist.barrier()
    for step in steps:
        if step == steps[-1] and kill is not None and kill[0] == rank:
            both = lambda: (os.kill(pids[1 - rank], signal.SIGKILL), die())  # noqa: E731
            told = kill_before(kill[1], f"last.ckpt-{step}", die if kill[2] == "one" else both)
        save_sharded(content(step, mesh), folder / "last.ckpt")
    dist.barrier()
    if kill is not None and kill[0] == rank:
        pids[rank] = -told()
    dist.destroy_process_group()


def save(folder, steps, kill=None):
    """The exit codes of two ranks that save after some steps, and what the killer counted if it came to the end."""
    (folder / "meeting").unlink(missing_ok=True)
    pids = CONTEXT.Array("q", 2)
    ranks = [CONTEXT.Process(target=saver, args=(rank, folder, steps, kill, pids)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    codes = [process.exitcode for process in ranks]
    assert None not in codes, "a rank waits for ever"
    return codes, -min(pids)


def saved_step(path):
    """The step of a checkpoint that is whole: every tensor is of that step."""
    read_checkpoint(path)
    found = load_content(path)
    step = found["global_step"]
    assert all(torch.equal(x, tensors(step)[name]) for name, x in found["state_dict"].items())
    assert torch.equal(found["optimizer_states"][0]["state"][0]["exp_avg"], tensors(step)["odd"])
    return step


def check_kills(folder, moments, ranks=(0, 1), whos=("one", "all")):
    """Kills at the moments, as far as there are so many; returns how often each step was found afterwards."""
    found = {1: 0, 2: 0}
    for rank in ranks:
        for who in whos:
            for moment in moments:
                place = folder / f"{rank}_{who}_{moment}"
                place.mkdir()
                codes, count = save(place, (1, 2), (rank, moment, who))
                if codes == [0, 0]:
                    assert 0 < count < moment
                    break
                assert codes[rank] == -signal.SIGKILL
                found[saved_step(place / "last.ckpt")] += 1
                remove_leftovers(place)
                assert len(list(place.glob("*.ckpt*"))) == 2
                assert not list(place.rglob("*.tmp"))
            else:
                continue
    return found


@pytest.mark.slow
def test_a_kill_at_some_moments_of_a_save_leaves_the_former_checkpoint(tmp_path):
    assert check_kills(tmp_path, (2, 14), whos=("one",))[1] >= 3


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    found = check_kills(tmp_path, range(1, 200))
    print(found)
    assert found[1] > 40
    assert found[2] > 2


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with a checkpoint that two ranks have saved after steps 1, 2 and 2 again."""
    folder = tmp_path_factory.mktemp("saved")
    assert save(folder, (1, 2, 2))[0] == [0, 0]
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """The index of a copy of that checkpoint."""
    for path in saved.glob("*.ckpt*"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    return tmp_path / "last.ckpt"


def test_a_step_that_is_saved_twice_gets_a_directory_of_its_own(saved):
    assert saved_step(saved / "last.ckpt") == 2
    assert [p.name for p in saved.glob("*.ckpt-*")] == ["last.ckpt-2.2"]


def test_each_rank_writes_its_rows_and_no_more(saved):
    files = {path.name: load_plain(path)["rows"] for path in (saved / "last.ckpt-2.2").iterdir()}
    assert {name: len(file["/state_dict/odd"]["rows"]) for name, file in files.items()} == {
        "rank-0.ckpt": 4,
        "rank-1.ckpt": 3,
    }
    assert len(files["rank-1.ckpt"]["/state_dict/fewer_rows_than_ranks"]["rows"]) == 0


@pytest.mark.parametrize("cuts", [(0, 7), (0, 3, 7), (0, 4, 5, 6, 7), (0, 1, 1, 7)])
def test_any_number_of_ranks_reads_its_rows(saved, cuts):
    odd = map_content(saved / "last.ckpt")["state_dict"]["odd"]
    rows = [torch.full((b - a, 3), -1.0) for a, b in itertools.pairwise(cuts)]
    for first, part in zip(cuts, rows, strict=False):
        odd.fill(part, first)
    assert torch.equal(torch.cat(rows), tensors(2)["odd"])


def refusal(path):
    with pytest.raises(InputError) as said:
        read_checkpoint(path)
    return str(said.value)


def test_damage_to_the_file_of_a_rank_is_found_and_named(copy):
    file = copy.with_name("last.ckpt-2.2") / "rank-1.ckpt"
    whole = file.read_bytes()
    for at in range(0, len(whole), 97):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert f"{file}: the checkpoint is damaged" in refusal(copy)
    file.unlink()
    assert f"{file} is missing; there is no whole best.ckpt beside it; delete last.ckpt" in refusal(copy)


def test_a_file_of_another_save_is_found(copy):
    file = copy.with_name("last.ckpt-2.2") / "rank-1.ckpt"
    other = load_plain(file)
    other["rows"]["/state_dict/odd"]["rows"] += 1
    write_content(other, file)
    assert f"{file}: the file is of another save" in refusal(copy)


def test_damage_to_the_index_is_found_and_the_files_stay(copy):
    whole = copy.read_bytes()
    for at in range(len(whole)):
        copy.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert f"{copy}: the checkpoint is damaged" in refusal(copy)
        remove_leftovers(copy.parent)
    copy.write_bytes(whole)
    assert saved_step(copy) == 2


def test_ranks_divide_the_comparison_of_checksums(copy):
    file = copy.with_name("last.ckpt-2.2") / "rank-1.ckpt"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    read_checkpoint(copy, share=(0, 2))
    with pytest.raises(InputError, match="rank-1"):
        read_checkpoint(copy, share=(1, 2))


def test_one_file_that_follows_a_sharded_checkpoint_takes_its_directory_away(copy):
    save_checkpoint(content(3), copy)
    assert saved_step(copy) == 3
    assert [p.name for p in copy.parent.glob("*.ckpt*")] == ["last.ckpt"]


def on_a_full_disk(rank, folder, said):
    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, resource.RLIM_INFINITY))
    try:
        saver(rank, folder, (3,), None, said)
    except TrainingError as error:
        os._exit(7 if "the former checkpoint is kept; make room" in str(error) else 8)


def test_all_ranks_stop_where_one_cannot_write_and_the_former_checkpoint_is_kept(copy):
    said = CONTEXT.Array("q", 2)
    ranks = [CONTEXT.Process(target=on_a_full_disk, args=(rank, copy.parent, said)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [7, 7]
    assert saved_step(copy) == 2
    assert sorted(p.name for p in copy.parent.glob("*.ckpt*")) == ["last.ckpt", "last.ckpt-2.2"]
