"""What the processes of a run tell each other about tensors; with one process everything stays as it is."""

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch import distributed as dist


def average_over_processes(totals: Tensor) -> Tensor:
    """Mean of a tensor over all processes; every process must call it. The tensor itself when there is one process."""
    if comm.get_world_size() == 1:
        return totals
    totals = totals.clone()
    dist.all_reduce(totals)
    return totals / comm.get_world_size()


def gather_over_processes(tensor: Tensor) -> Tensor:
    """A tensor of every process, stacked in order of rank, (processes, ...); every process must call it, with the same
    shape."""
    tensor = tensor.contiguous()
    if comm.get_world_size() == 1:
        return tensor[None]
    gathered = [torch.empty_like(tensor) for _ in range(comm.get_world_size())]
    dist.all_gather(gathered, tensor)
    return torch.stack(gathered)


def from_next_process(tensors: list[Tensor]) -> list[Tensor]:
    """The same tensors of the process of the next rank, the first after the last; every process must call it, with the
    same shapes and types. The tensors themselves when there is one process.

    One message, sent in a ring, whatever the number of processes.
    """
    rank, world_size = comm.get_rank(), comm.get_world_size()
    if world_size == 1:
        return tensors
    bytes_of = [tensor.contiguous().view(torch.uint8).reshape(-1) for tensor in tensors]
    sent = torch.cat(bytes_of)
    received = torch.empty_like(sent)
    ring = [
        dist.P2POp(dist.isend, sent, (rank - 1) % world_size),
        dist.P2POp(dist.irecv, received, (rank + 1) % world_size),
    ]
    for request in dist.batch_isend_irecv(ring):
        request.wait()
    parts = received.split([len(part) for part in bytes_of])
    # Each part is copied: a view as another type asks for an offset that fits it.
    return [part.clone().view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def broadcast_buffers(*networks: nn.Module) -> None:
    """Give every process the main process's buffers: batch-norm statistics drift apart between processes.

    One message for each type of buffer.
    """
    if comm.get_world_size() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for network in networks:
        for buffer in network.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
    for buffers in by_type.values():
        joined = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.broadcast(joined, 0)
        parts = joined.split([buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])
