"""Values that the host needs while the device goes on."""

import torch
from torch import Tensor


class Fetched:
    """A tensor on its way to the host. What is handed to a GPU between this and `get` runs while the host waits."""

    def __init__(self, tensor: Tensor) -> None:
        self.value, self.arrived = tensor.detach(), None
        if tensor.is_cuda:
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.value, self.arrived = pinned.copy_(self.value, non_blocking=True), torch.cuda.Event()
            self.arrived.record()

    def get(self) -> Tensor:
        """Wait for it, and return it in CPU memory."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.value.cpu()


def sent(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor that lies in CPU memory on `device`. A GPU's host does not wait: an ordinary copy ends when all is done that the GPU
    has been given so far."""
    if device.type == "cuda" and not value.is_cuda:
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
