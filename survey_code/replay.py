"""A training step that a GPU records once and then replays."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]

# Steps made as usual before one is recorded: libraries set themselves up in the first,
# and tables note on the processor what they would else ask the GPU for.
WARM_STEPS = 3


class RecordedStep:
    """A step of a small network is a hundred short kernels, and starting them takes a
    processor ten times as long as running them takes the GPU.  Recorded as a CUDA
    graph, they are started all at once.

    A recording holds the addresses of all weights.  Where one was replaced, as methods
    do that change their shape, the step is recorded anew; a batch of another size, the
    last of an epoch, is learnt from as usual.

    Parameters
    ----------
    learn : callable
        The step: a batch, a tuple of tensors on a GPU -> its loss.  Gradients,
        optimiser and all; it must do the same for each batch of one size.
    network : Module
        Whose weights move.
    """

    def __init__(self, learn: Callable[[Batch], Tensor], network: nn.Module) -> None:
        self.learn, self.network = learn, network
        self.warm = 0
        self.shapes: list[torch.Size] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.held: list[Tensor] = []
        self.grads: list[tuple[nn.Parameter, Tensor | None]] = []
        self.addresses: list[int] = []
        self.aside = torch.cuda.Stream()

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of a batch, learnt from."""
        shapes = [part.shape for part in batch]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            return self.learn(batch)
        if self.graph is not None and self.addresses != list_addresses(self.network):
            self.graph, self.warm = None, 0
        if self.graph is None:
            if self.warm < WARM_STEPS:
                self.warm += 1
                return self.warm_up(batch)
            self.record(batch)
        for held, part in zip(self.held, batch, strict=True):
            held.copy_(part)
        assert self.graph is not None
        self.graph.replay()
        # A step as usual in between has put others there.
        for weight, grad in self.grads:
            weight.grad = grad
        return self.loss.clone()

    def warm_up(self, batch: Batch) -> Tensor:
        """A step as usual, on a stream like that on which steps are recorded."""
        self.aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.aside):
            loss = self.learn(batch)
        torch.cuda.current_stream().wait_stream(self.aside)
        return loss

    def record(self, batch: Batch) -> None:
        """Note what a step does; nothing is done yet.

        Raises
        ------
        RuntimeError
            If the step asks the GPU for a number, or its shapes follow from numbers.
        """
        self.held = [part.clone() for part in batch]
        self.graph = torch.cuda.CUDAGraph()
        weights = list(self.network.parameters())
        for weight in weights:
            weight.grad = None
        with uncollected(), torch.cuda.graph(self.graph, stream=self.aside):
            self.loss = self.learn(tuple(self.held))
        self.grads = [(weight, weight.grad) for weight in weights]
        self.addresses = list_addresses(self.network)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Collect garbage now and not meanwhile: another training's graph that is freed
    while a step is recorded would end the recording.
    """
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def is_recording() -> bool:
    """Whether a step is being recorded: numbers cannot be asked for now, nor shapes
    that follow from them.
    """
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def each_once(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The different ids, rising, and where each id stands among them; while a step is
    recorded, all ids as they come.

    Returns
    -------
    ids : Tensor of int64, shape (m,)
    places : Tensor of int64, shape of the ids given
    """
    if not is_recording():
        return torch.unique(ids, return_inverse=True)
    return ids.flatten(), torch.arange(ids.numel(), device=ids.device).view(ids.shape)


def list_addresses(network: nn.Module) -> list[int]:
    """Where the weights and buffers of a network lie."""
    held = itertools.chain(network.parameters(), network.buffers())
    return [part.data_ptr() for part in held]


def hold_on_gpu(optimizers: Iterable[torch.optim.Optimizer], device: str) -> None:
    """Let optimisers read their rates from the GPU, so that a recorded step follows
    them.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["capturable"] = True
            group["lr"] = torch.tensor(float(group["lr"]), device=device)


def set_rate(group: dict[str, object], rate: float) -> None:
    """The learning rate of a group, wherever it is held."""
    held = group["lr"]
    if isinstance(held, Tensor):
        held.fill_(rate)
    else:
        group["lr"] = rate
