"""Processes that train the members of a comparison in parallel on a CPU."""

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from sae_lightning.data.batch import ActivationBatch
from sae_lightning.modules.member import Member, StepScalars
from sae_lightning.modules.run import SIGTERM_STATUS

_ALIGNMENT = 64  # bytes: what vector instructions like
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class _Other(NamedTuple):
    """One of the processes that this one has forked."""

    process: BaseProcess
    connection: Connection
    names: list[str]

    def __str__(self) -> str:
        return f"the process that trains {', '.join(self.names)} (pid {self.process.pid})"

    def limit(self, seconds: float) -> None:
        """Set the timeout of reads and writes; a pipe that times out raises BlockingIOError."""
        seconds = min(seconds, 1e9)
        value = struct.pack("ll", int(seconds), max(1, int(seconds % 1 * 1e6)))  # zero would be no limit
        with socket.socket(fileno=os.dup(self.connection.fileno())) as pipe:
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


class MemberProcesses:
    """Computes losses and gradients of several SAEs in several processes; this process is the first.

    The others are forked. Weights, buffers and gradients lie in shared memory until `close`; batches and losses go
    through pipes. Each process runs on one
    thread: operations of small SAEs are too short to be split among threads. The others end with this process, however
    it ends; where the system is not Linux, one that is stopped ends when it is continued.

    Args:
        saes: The SAEs by name; they are dealt to the processes in turn. What training changes in them must lie in
            their parameters and buffers.
        n: Number of processes, from 2 to the number of SAEs.
        timeout: Seconds that a process may take for its part of a step.

    Raises:
        ValueError: If `n` is out of range.
        ChildProcessError: If a process is gone before it is ready.
        TimeoutError: If a process is not ready in time.
    """

    def __init__(self, saes: Mapping[str, Member], n: int, timeout: float) -> None:
        if not 2 <= n <= len(saes):
            raise ValueError(f"n must lie between 2 and the number of SAEs, {len(saes)}, but is {n}")
        names = list(saes)
        self._saes = saes
        self._own = names[::n]
        self._found: dict[str, Sequence[Tensor | None]] = {}
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        _share(chain.from_iterable(_tensors(sae) for sae in saes.values()))
        self._parameters = {name: list(sae.parameters()) for name, sae in saes.items()}  # to find them takes its time
        self._places = {name: [torch.zeros_like(p) for p in self._parameters[name]] for name in names}
        _share(chain.from_iterable(self._places[name] for name in names if name not in self._own))
        self._timeout = timeout
        self._hurried = False
        self._usual = 0.0  # seconds that steps have taken of late
        self._others: list[_Other] = []
        Finalize(self, _end, (self._others,), exitpriority=0)  # else the end of the program would wait for them
        context = multiprocessing.get_context("fork")
        for i in range(1, n):
            shares = {name: (saes[name], self._parameters[name], self._places[name]) for name in names[i::n]}
            ours, theirs = context.Pipe()
            inherited = [ours, *(other.connection for other in self._others)]
            process = context.Process(target=_serve, args=(os.getpid(), theirs, inherited, shares), daemon=True)
            with warnings.catch_warnings():  # Python warns of locks that other threads may hold: none is taken here
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            self._others.append(_Other(process, ours, names[i::n]))
            self._others[-1].limit(timeout)
        for other in self._others:  # from when they are ready, they end with this process
            with self._answered(other):
                other.connection.recv_bytes()

    def learn(self, batch: ActivationBatch, with_l0: bool) -> dict[str, StepScalars]:
        """Return the losses of a training batch, in the order of the SAEs; keeps their gradients.

        Raises:
            Exception: If a member raises one, in any process.
            ChildProcessError: If a process is gone.
            TimeoutError: If a process has not answered in time.
            SIGTERMException: The same after `hurry`.
        """
        began = time.monotonic()
        x, target = batch.activations, batch.target
        values = [x] if target is None else [x, target]
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        for other in self._others:
            with self._answered(other):
                other.connection.send(([(tuple(value.shape), value.dtype) for value in values], autocast, with_l0))
                for value in values:
                    other.connection.send_bytes(value.flatten().view(torch.uint8).numpy().data)
        scalars: dict[str, StepScalars] = {}
        failure: Exception | None = None
        try:
            for name in self._own:
                scalars[name], self._found[name] = _learn(self._saes[name], self._parameters[name], values, with_l0)
        except Exception as error:  # the other answers are to be read all the same
            failure = error
        for other in self._others:
            with self._answered(other):
                answer = other.connection.recv()
            if isinstance(answer, Exception):
                failure = failure or answer
                continue
            for name, (sent, used) in answer.items():
                scalars[name] = _tensors_of(sent)
                self._found[name] = [g if u else None for g, u in zip(self._places[name], used, strict=True)]
        if failure is not None:
            raise failure
        self._usual = max(time.monotonic() - began, 0.7 * self._usual)
        return {name: scalars[name] for name in self._saes}

    def hurry(self) -> None:
        """Shorten the timeout to little more than a step takes, also of a wait that has begun.

        A signal's handler may call it.
        """
        self._hurried = True
        self._timeout = min(self._timeout, 1 + 2 * self._usual)
        for other in list(self._others):
            with contextlib.suppress(OSError):  # its pipe is closed
                other.limit(self._timeout)

    @contextlib.contextmanager
    def _answered(self, other: _Other) -> Iterator[None]:
        """Raise an error that names the process if its pipe breaks or times out."""
        try:
            yield
        except BlockingIOError as error:
            if self._hurried:
                rank_zero_warn(f"SIGTERM: {other} does not answer, so the step at hand is lost")
                raise SIGTERMException(SIGTERM_STATUS) from error
            raise TimeoutError(
                f"{other} has not answered for {self._timeout:g} s: it is stopped, or hangs. Where a step takes so "
                "long, raise process_timeout; processes = 1 needs no other process"
            ) from error
        except (EOFError, OSError) as error:
            other.process.join(1)
            raise ChildProcessError(
                f"{other} is gone (exit code {other.process.exitcode}; -9 is how a system without memory left ends "
                "it): train fewer members at a time, or with processes = 1"
            ) from error

    def backward(self, factors: Sequence[float]) -> None:
        """Add the gradients of the last losses, each multiplied by a factor, to those of the parameters."""
        for (name, parameters), factor in zip(self._parameters.items(), factors, strict=True):
            for parameter, grad in zip(parameters, self._found[name], strict=True):
                if grad is None:
                    continue
                scaled = grad if factor == 1 else grad * factor
                # in the parameter's memory order, for fused optimizers look at no other
                parameter.grad = scaled.contiguous() if parameter.grad is None else parameter.grad + scaled

    def close(self) -> None:
        """End the other processes, and give the SAEs memory of their own."""
        _end(self._others)
        for sae in self._saes.values():
            for tensor in _tensors(sae):
                tensor.data = tensor.data.clone()
                tensor.grad = None
        torch.set_num_threads(self._threads)


def _end(others: list[_Other]) -> None:
    """Kill the processes, also stopped or hanging ones: their results are in shared memory already."""
    for other in others:
        other.connection.close()
        other.process.kill()
    for other in others:
        other.process.join(10)
    others.clear()


def _tensors(sae: Member) -> Iterator[Tensor]:
    return chain(sae.parameters(), sae.buffers())


def _share(tensors: Iterable[Tensor]) -> None:
    """Move tensors into one block of memory that processes share once they are forked."""
    tensors = list(tensors)
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    block = mmap.mmap(-1, end)
    for tensor, offset in zip(tensors, offsets, strict=True):
        place = torch.frombuffer(block, dtype=tensor.dtype, count=tensor.numel(), offset=offset).view(tensor.shape)
        tensor.data = place.copy_(tensor.data)


def _learn(
    sae: Member, parameters: Sequence[Tensor], values: Sequence[Tensor], with_l0: bool
) -> tuple[StepScalars, Sequence[Tensor | None]]:
    """Run one SAE's training step up to its gradients, None for parameters that have none."""
    result = sae.learn(*values)
    scalars = StepScalars(
        {key: value.detach() for key, value in result.terms.items()}, result.l0() if with_l0 else None
    )
    with torch.autocast("cpu", enabled=False):  # as Lightning calls `backward`
        return scalars, torch.autograd.grad(result.terms["loss"], parameters, allow_unused=True)


def _serve(
    parent: int,
    connection: Connection,
    inherited: Sequence[Connection],
    shares: dict[str, tuple[Member, Sequence[Tensor], Sequence[Tensor]]],
) -> None:
    """Answer requests until the other end of the pipe is closed, or its process dead."""
    for other in inherited:  # open here, they would outlive the first process
        other.close()
    buffers = {name: list(_buffers(sae)) for name, (sae, *_) in shares.items()}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what these mean
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a stopped process would not see the pipe's end
    if os.getppid() != parent:  # which has died before that
        os._exit(1)
    torch.set_num_threads(1)  # the threads of the first process are not here, and GNU's OpenMP would wait for them
    with contextlib.suppress(EOFError, OSError):
        connection.send_bytes(b"ready")
        while True:
            forms, autocast, with_l0 = connection.recv()
            received = [(bytearray(connection.recv_bytes()), form) for form in forms]
            values = [torch.frombuffer(data, dtype=dtype).view(shape) for data, (shape, dtype) in received]
            try:
                with torch.autocast("cpu", autocast, enabled=autocast is not None):
                    answers = {name: _answer(*share, values, with_l0) for name, share in shares.items()}
                for name in shares:
                    _share_again(buffers[name])
                connection.send(answers)
            except Exception as error:
                connection.send(_picklable(error))
    os._exit(0)  # what was inherited is not this process's to close


def _answer(
    sae: Member, parameters: Sequence[Tensor], places: Sequence[Tensor], values: Sequence[Tensor], with_l0: bool
) -> tuple[Any, list[bool]]:
    """Write one SAE's gradients to shared memory; return its scalars, and which parameters have a gradient."""
    scalars, grads = _learn(sae, parameters, values, with_l0)
    for place, grad in zip(places, grads, strict=True):
        if grad is not None:
            place.copy_(grad)
    return _plain(scalars), [grad is not None for grad in grads]


def _buffers(sae: Member) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Module, name and tensor of each buffer."""
    for path, tensor in sae.named_buffers():
        owner, _, name = path.rpartition(".")
        yield sae.get_submodule(owner), name, tensor


def _share_again(buffers: Sequence[tuple[nn.Module, str, Tensor]]) -> None:
    """Copy buffers that a step has replaced by other tensors into shared memory, and put these back."""
    for module, name, shared in buffers:
        current = getattr(module, name)
        if current is not shared:
            shared.copy_(current)
            setattr(module, name, shared)


def _plain(scalars: StepScalars) -> tuple[Any, ...]:
    # a pipe would carry tensors as handles of shared memory, which is slow
    terms = {key: (value.item(), value.dtype) for key, value in scalars.terms.items()}
    return terms, None if scalars.l0 is None else (scalars.l0.item(), scalars.l0.dtype)


def _tensors_of(plain: tuple[Any, ...]) -> StepScalars:
    terms, l0 = plain
    return StepScalars(
        {key: torch.tensor(value, dtype=dtype) for key, (value, dtype) in terms.items()},
        None if l0 is None else torch.tensor(l0[0], dtype=l0[1]),
    )


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
