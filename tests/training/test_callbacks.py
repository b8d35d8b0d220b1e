import torch

from shiqrun.training.checkpoint_io import AtomicCheckpointIO


def test_saving_a_checkpoint_removes_what_killed_writers_of_it_left(tmp_path):
    path = tmp_path / "last.ckpt"
    for name in (".last.ckpt.999999.tmp", "last.ckpt.999999.tmp", "best.ckpt.999999.tmp"):
        (tmp_path / name).touch()
    AtomicCheckpointIO().save_checkpoint({"global_step": 3}, path)
    assert torch.load(path) == {"global_step": 3}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.ckpt.999999.tmp", "last.ckpt"]
