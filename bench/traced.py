"""`trace` runs a micro-batch of a sharded policy without its numbers, and says what one rank of many holds and sends.

Tensors are fake (`FakeTensorMode`): they have shapes and no memory. The process group is torch's fake one, which has
any number of ranks in one process. Sharding, forward pass, scoring, loss, backward pass and optimiser are the
project's own. torch's memory tracker for FSDP2 counts the bytes that live; `Collectives` counts what is sent.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker, _FSDPRefType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import AutoModelForCausalLM, PreTrainedConfig

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.rows import Rows
from shiqrun.config.compose import compose
from shiqrun.config.validate import settings
from shiqrun.losses import shiq
from shiqrun.models import scoring
from shiqrun.models.attention import use_packed_attention
from shiqrun.models.policy import ModelSettings, Policy, prepare
from shiqrun.models.sharding import shard
from shiqrun.settings import TrainerSettings
from shiqrun.training.step.optimiser import adamw, divide_and_clip
from shiqrun.types import ActionScores, Trajectories

SENT = {
    "_allgather_base_": ("all-gathered", 0),
    "_reduce_scatter_base_": ("reduce-scattered", 1),
    "allreduce_": ("all-reduced", 0),
}
"""Collectives by the name of torch's operator: what they are called, and which argument is the whole tensor."""
CATEGORIES = {
    "parameters": ("Sharded Param",),
    "gradients": ("Sharded Grad",),
    "moments": ("OptState",),
    "gathered": ("Unsharded Param", "All Gather"),
    "exchanged gradients": ("Unsharded Grad", "Reduce Scatter"),
    "casts": ("Inputs",),
    "activations": ("Activation",),
    "other": ("Temp", "Buffer"),
}
"""What the tracker's categories are called here. It has none for casts, which take that of inputs, otherwise unused."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A `Setting` says how a model is trained.

    Attributes:
        tokens: of a micro-batch, in rows of `row` tokens, half of them actions.
        row: tokens of a row.
        half: weights, gradients and moments in bfloat16, updated with stochastic rounding.
        autocast: the body computes in bfloat16; float32 weights are cast.
        checkpointing: activations are recomputed.
        as_gpu: logits are computed in tiles of the size and dtype of a GPU.
    """

    tokens: int = 8192
    row: int = 1024
    half: bool = False
    autocast: bool = True
    checkpointing: bool = True
    as_gpu: bool = True


class Traced(NamedTuple):
    """A `Traced` is what a rank holds and sends in one micro-batch.

    Attributes:
        held: bytes at the peak, by category.
        sent: bytes that pass a collective in whole tensors, by its kind.
        expected: the same by arithmetic from the sizes of the groups.
    """

    held: dict[str, int]
    sent: dict[str, int]
    expected: dict[str, int]


class Collectives(TorchDispatchMode):
    """A `Collectives` counts the bytes of whole tensors that pass each kind of collective."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator and let it run."""
        kind, place = SENT.get(func.overloadpacket.__name__, (None, 0))
        if kind is not None:
            whole = args[place]
            self.sent[kind] += sum(
                x.numel() * x.element_size() for x in (whole if isinstance(whole, list) else [whole])
            )
        return func(*args, **kwargs or {})


class Ledger(FSDPMemTracker):
    """A `Ledger` is torch's tracker, which counts copies of weights in another dtype apart from activations."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Track what one operator returns."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten._to_copy.default and result is not NotImplemented and self._is_weight(args[0]):
            self._update_and_maybe_create_winfos(result, _FSDPRefType.INP, update_existing=True)
        return result

    def _update_peak_stats(self, peak_state: Any) -> None:
        """Keep the peak of the whole step; those of single modules, which take as long as all else, are not used."""
        for device, now in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < now["Total"]:
                self._peak_mem[device], self._peak_mem_snap[device] = now["Total"], dict(now)

    def _is_weight(self, x: Tensor) -> bool:
        found, _ = self._WINFO.get(x.untyped_storage(), (None, None))
        return found is not None and found.reftype is _FSDPRefType.UNSHARDED_PARAM


@contextmanager
def ranks(world: int) -> Iterator[Any]:
    """Yield the mesh of a fake process group of so many ranks, of which this process is the first."""
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (world,))
    finally:
        dist.destroy_process_group()


@contextmanager
def scoring_as_on_a_gpu() -> Iterator[None]:
    """Let logits be computed in a GPU's tiles and with bfloat16 factors inside the block; numbers are not computed."""
    tables = (scoring.TILE_BYTES, scoring.SMALLEST_CHUNK, scoring.KEPT_BYTES)
    before, choose = [dict(table) for table in tables], scoring._factor_dtype

    def factors(hidden: Tensor, weight: Tensor, dtype: torch.dtype | None) -> torch.dtype:
        return dtype or torch.promote_types(hidden.dtype, weight.dtype)

    for table in tables:
        table["cpu"] = table["cuda"]
    scoring._factor_dtype = factors
    try:
        yield
    finally:
        scoring._factor_dtype = choose
        for table, old in zip(tables, before, strict=True):
            table.update(old)


def batch_of(setting: Setting) -> Trajectories:
    """Return a packed micro-batch of equal rows, with reference scores as the cache would give them."""
    half = setting.row // 2
    rows = [
        EncodedTrajectory(
            np.arange(i, i + setting.row, dtype=np.int32) % 1000,
            np.arange(half, setting.row, dtype=np.int32),
            np.ones(setting.row - half, np.float32),
            f"p{i}",
            i,
            0,
            "made",
            f"p{i}",
        )
        for i in range(setting.tokens // setting.row)
    ]
    return Rows(rows, 0, packed=True, device="cuda" if setting.as_gpu else "cpu").collate(range(len(rows)))


def policy_of(config: PreTrainedConfig, setting: Setting) -> Policy:
    """Return the policy of a model with this config, prepared for training as `shiqrun train` does."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if setting.half else torch.float32)
    prepared = ModelSettings(
        gradient_checkpointing=setting.checkpointing,
        attn_implementation=None,
        lora_r=0,
        lora_alpha=1,
        lora_target_modules=None,
    )
    policy = Policy(prepare(model, prepared), autocast=torch.bfloat16 if setting.autocast else None)
    use_packed_attention(policy.causal_lm)
    return policy


def loss_of(policy: nn.Module, batch: Trajectories) -> Tensor:
    """Return the sum of ShiQ's loss over a micro-batch, against a reference whose scores are zero."""
    zero = torch.zeros(batch.action_mask.shape, device=batch.action_mask.device)
    return shiq(batch, policy(batch), ActionScores(zero, zero), beta=0.1, lam=1.0, units="action").total


def trainer_settings(*changes: str) -> TrainerSettings:
    """Return the settings of `conf/train.yaml` with changes."""
    return settings(compose("train", ["run_dir=unused", *changes]).trainer, TrainerSettings)


def trace(config: PreTrainedConfig, world: int, setting: Setting) -> Traced:
    """Return what the first of `world` ranks holds and sends in one of several micro-batches of a step.

    Gradients of an earlier micro-batch and the moments are there already.
    """
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    batch = batch_of(setting)
    with ranks(world) as mesh, FakeTensorMode(allow_non_fake_inputs=True) as fake:
        policy = policy_of(config, setting)
        shard(policy, mesh)
        optimizer = adamw(policy, trainer_settings(), value_lr_ratio=1.0)
        _make_moments(policy, optimizer)
        batch = tree_map(lambda x: fake.from_tensor(x) if isinstance(x, Tensor) else x, batch)
        ledger, collectives = Ledger(policy, optimizer), Collectives()
        with scoring_as_on_a_gpu() if setting.as_gpu else nullcontext(), ledger, collectives:
            loss_of(policy, batch).backward()
        peak = ledger.get_tracker_snapshot("peak")[torch.device("cpu")]
        named = {str(getattr(kind, "value", kind)): size for kind, size in peak.items()}
        held = {name: sum(named[part] for part in parts) for name, parts in CATEGORIES.items()}
        assert sum(held.values()) == named["Total"], named
        return Traced(held, dict(collectives.sent), _expected(policy, setting) if world > 1 else {})


def _make_moments(policy: nn.Module, optimizer: Any) -> None:
    """Take the optimiser's first step, which makes the moments, and leave gradients of zero.

    The tracker does not watch it: it would count what DTensors compute to know the shapes of results.
    """
    for p in policy.parameters():
        p.grad = torch.zeros_like(p)
    divide_and_clip(optimizer, torch.ones(()), 1.0)
    optimizer.step()


def _expected(policy: nn.Module, setting: Setting) -> dict[str, int]:
    """Return the bytes that collectives pass, from the sizes of the groups that are gathered together.

    A decoder layer is gathered for the forward and again for the backward pass, the rest once; each gradient is
    reduced once. Each parameter is padded to a multiple of the ranks in its first dimension.
    """
    gathered = reduced = 0
    for module in policy.modules():
        if not isinstance(module, FSDPModule):
            continue
        group: Any = module._get_fsdp_state()._fsdp_param_group
        size = sum(p.padded_sharded_param_size.numel() * group.mesh_info.shard_mesh_size for p in group.fsdp_params)
        each = 2 if setting.half else 4
        gathered += (1 if module is policy else 2) * size * each
        reduced += size * each
    return {"all-gathered": gathered, "reduce-scattered": reduced}
