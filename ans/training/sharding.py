"""Frozen weights shared out over the processes (FSDP2): each holds a part of every layer, and the whole of a layer while it runs.

What is trained stays whole on every process, so the flat gradients, surgery and the teacher are what they are without.

Gathering a layer takes all processes, but they do not run equally often: captions end sooner or later, and only the first process
writes examples. So before each forward of a part they agree on whose turn it is; those that want something else, or have nothing
left to run, help to gather its layers. Before any other communication, such as a backward pass, which gathers too, they
`meet`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ans.model.segmenter import Segmenter
from ans.processes import TIMEOUT

MEETING = 0
"""What a process wants that waits for the others."""


def parts_of(model: Segmenter) -> dict[str, nn.Module]:
    """Return the parts whose layers are shared out. Tables, projectors and the mask decoder are read outside of their own forwards, and
    stay whole."""
    return {"language": model.vlm.language_model.model, "vision": model.vlm.vision, "sam": model.sam.encoder}


def stack_of(part: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Return the layers of a part, which hold nearly all of its weights, behind the module that runs them."""
    stacks = [(owner, of) for owner in part.modules() for of in owner.children() if isinstance(of, nn.ModuleList)]
    owner, layers = max(stacks, key=lambda stack: sum(p.numel() for p in stack[1].parameters()))
    return owner, list(layers)


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: all, or its share."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def share_layers(part: nn.Module, mesh: DeviceMesh) -> tuple[nn.Module, list[nn.Module]]:
    """Share out the frozen tensors of a part's layers over the processes of `mesh`; what `stack_of` returns."""
    owner, layers = stack_of(part)
    for layer in layers:
        trained = {p for p in layer.parameters() if p.requires_grad}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    fully_shard(owner, mesh=mesh, ignored_params={p for p in owner.parameters() if not isinstance(p, DTensor)})
    # by itself it would gather ahead what ran before on this process, which on others may be something else
    for layer, before in zip(layers, [layers[0], *layers], strict=False):
        cast(FSDPModule, layer).set_modules_to_backward_prefetch([cast(FSDPModule, before)])
    owner.register_forward_hook(_forget)
    return owner, layers


def share_out(model: Segmenter, device: torch.device, processes: int) -> Callable[[], None]:
    """Share out the frozen layers of `model`, which lies in CPU memory, and put all on `device`; `meet`, which waits until all processes
    have called it."""
    sharing = Sharing(model, device, processes)
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)
    return sharing.meet


class Sharing:
    """The parts of one model, and the agreement about their forwards."""

    def __init__(self, model: Segmenter, device: torch.device, processes: int) -> None:
        # on the host: an agreement must not wait for what the device has still to do
        model.vlm.repeatable = False  # a graph would not ask the others
        self.group = distributed.new_group(backend="gloo", timeout=TIMEOUT)
        mesh = init_device_mesh(device.type, (processes,))
        self.layers: list[list[nn.Module]] = []
        for number, part in enumerate(parts_of(model).values(), 1):
            owner, layers = share_layers(part, mesh)
            owner.register_forward_pre_hook(partial(self._before, number), prepend=True)
            self.layers.append(layers)

    def meet(self) -> None:
        """Wait until all processes are here; help those that are not to run what they still want."""
        self._agree_on(MEETING)

    def _before(self, number: int, *_: Any) -> None:
        # with a gradient all run equally often, and their backward passes gather again
        self._agree_on(number if torch.is_grad_enabled() else len(self.layers) + number)

    def _agree_on(self, wanted: int) -> None:
        """Return when it is the turn of `wanted`: first comes what runs without a gradient. Raises `RuntimeError` where the processes want
        different things that all would have to do at the same time."""
        while True:
            highest = torch.tensor([wanted, -wanted])
            distributed.all_reduce(highest, distributed.ReduceOp.MAX, self.group)
            turn, least = highest.tolist()
            if turn <= len(self.layers) and -least != turn:
                raise RuntimeError("launch.shard_frozen: the processes run different numbers of forwards with a gradient")
            if turn == wanted:
                return
            for layer in self.layers[turn - len(self.layers) - 1]:
                cast(FSDPModule, layer).unshard()
                cast(FSDPModule, layer).reshard()


def _forget(owner: nn.Module, *_: Any) -> None:
    """Let FSDP drop its notes of a forward without a gradient: it keeps them for a backward pass, of which encoders have none."""
    if not torch.is_grad_enabled():
        cast(FSDPModule, owner).reset_iter_state()
