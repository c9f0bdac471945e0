"""What a training step of a TopK SAE costs, by its sizes: operations, bytes, seconds; on GPUs a prediction.

    python -m benchmarks.cost_model --d_in 4096 --d_sae 131072 --gpus 512

The CPU's constants are fitted to measured steps (`benchmarks.scale`); those of a GPU are what its maker
publishes, times an assumed efficiency. No GPU has confirmed them.
"""

import argparse
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.problem import Shape

FLOAT, HALF = 4, 2  # bytes of float32, and of bfloat16 or float16
STRATEGIES = ("ddp", "fsdp", "sharded")
FEATURES = ("product", "pre-codes", "sparse", "weights", "fixed")


def features(shape: Shape) -> list[float]:
    """What the parts of a step grow with, in the order of `FEATURES`.

    The encoder's product, 2 B d_in d_sae operations; passes over the pre-codes, B d_sae; sparse decoding and its
    gradients, B k d_in; passes over weights, gradients and moments, 2 d_in d_sae; what every step costs.
    """
    d_in, d_sae, batch, k = shape
    return [2.0 * batch * d_in * d_sae, float(batch * d_sae), float(batch * k * d_in), 2.0 * d_in * d_sae, 1.0]


def cpu_seconds(shape: Shape, constants: list[float]) -> float:
    """Seconds of a step on the CPU whose constants, in seconds per unit of each feature, are given."""
    return sum(c * f for c, f in zip(constants, features(shape), strict=True))


@dataclass(frozen=True)
class Memory:
    """Bytes on one device: what stays, and what a step adds.

    Attributes:
        weights: Both matrices, float32.
        moments: Adam's two moments of them.
        gradients: Of both matrices; twice under DDP, which copies them into buckets; under FSDP with the whole weights.
        pre_codes: Dense pre-codes of the samples held at a time.
        lowered: The encoder's copy in half precision.
    """

    weights: int
    moments: int
    gradients: int
    pre_codes: int
    lowered: int

    @property
    def step(self) -> int:
        """What a step adds at its peak."""
        return self.gradients + self.pre_codes + self.lowered

    @property
    def total(self) -> int:
        """Everything."""
        return self.weights + self.moments + self.step


class Plan(NamedTuple):
    """How GPUs share a run.

    Attributes:
        name: ddp (whole weights everywhere), fsdp (every parameter cut up, put together where it is used), or sharded
            (latents split within a group; gradients averaged over groups).
        gpus: Number of GPUs.
        shards: GPUs of a group, which see the same batch; 1 unless sharded.
    """

    name: str
    gpus: int
    shards: int = 1

    @property
    def groups(self) -> int:
        """How many batches a step sees."""
        return self.gpus // self.shards


def plan(name: str, gpus: int, per_node: int = 8) -> Plan:
    """A strategy's usual plan: groups of sharded latents lie within a node.

    Raises:
        ValueError: If there is no such strategy, or groups would differ in size.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy must be one of {STRATEGIES}, but is {name!r}")
    shards = min(gpus, per_node) if name == "sharded" else 1
    if gpus % shards:
        raise ValueError(f"gpus must be a multiple of the {shards} of a node, but is {gpus}")
    return Plan(name, gpus, shards)


def memory(shape: Shape, of: Plan | None = None, *, half: bool = False, chunk: int | None = None) -> Memory:
    """Memory of a step without batches and small vectors.

    Args:
        shape: Sizes; `batch` is that of one group.
        of: How GPUs share the run; None for one device.
        half: Whether products run in half precision.
        chunk: Samples whose pre-codes are held at a time; None for the batch.
    """
    d_in, d_sae, batch, _ = shape
    of = of or Plan("ddp", 1)
    local = -(-d_sae // of.shards)
    matrices = 2 * d_in * local * FLOAT
    held = min(batch, chunk or batch) * local * FLOAT
    lowered = d_in * local * HALF if half else 0
    if of.name == "fsdp":  # a share of what stays; a step puts both matrices and their gradients together
        share = -(-matrices // of.gpus)
        return Memory(share, 2 * share, 2 * matrices, held, lowered)
    twice = of.name == "ddp" and of.gpus > 1
    return Memory(matrices, 2 * matrices, matrices * (2 if twice else 1), held, lowered)


class Device(NamedTuple):
    """A GPU by its maker's numbers, and the share of each that is assumed to be reached."""

    name: str
    flops: float
    """Operations per second of dense products in bfloat16."""
    bandwidth: float
    """Bytes per second of its memory."""
    nvlink: float
    """Bytes per second and direction to GPUs of the same node."""
    network: float
    """Bytes per second and direction to other nodes, for each GPU."""
    reached: tuple[float, float, float]
    """Efficiencies of products, memory and links."""
    per_node: int = 8


H100 = Device("H100 SXM", 989e12, 3.35e12, 450e9, 50e9, (0.4, 0.6, 0.7))


class Step(NamedTuple):
    """Predicted seconds of the parts of a step, which are taken to follow each other."""

    product: float
    memory: float
    exchange: float

    @property
    def seconds(self) -> float:
        """Their sum."""
        return sum(self)


def memory_traffic(shape: Shape, shards: int = 1) -> float:
    """Bytes that a step reads and writes in a GPU's memory, counted, caches ignored.

    Pre-codes six times over (the product writes them, they become float32, the bias is added, the k largest are found);
    per code the row of an atom twice (decoding, the codes' gradient) and that of each gradient read and written; per
    weight 10 times four bytes (gradient cleared and written, norm, Adam's four reads and three writes) and, for the
    encoder's half-precision copy, six bytes.
    """
    d_in, d_sae, batch, k = shape
    local = d_sae / shards
    pre_codes = 6 * FLOAT * batch * local
    sparse = (2 + 2 * 2) * FLOAT * batch * (k / shards) * d_in
    weights = 10 * FLOAT * 2 * d_in * local + 6 * d_in * local
    return pre_codes + sparse + weights


def exchanged(shape: Shape, of: Plan) -> tuple[float, float]:
    """Bytes that each GPU sends in a step, within its group and between groups, by ring algorithms.

    An all-reduce of n bytes among R sends 2 (R - 1) / R n, an all-gather or reduce-scatter half of that. Between
    groups: the gradients, 4 * 2 d_in d_sae bytes (of a group's share where latents are sharded), all-reduced; by FSDP
    the weights gathered twice and the gradients scattered once. Within a group: x_hat, 4 B d_in, all-reduced, and k
    pre-codes per sample and GPU, 4 R B k, gathered.
    """
    d_in, d_sae, batch, k = shape
    within, between = (of.shards - 1) / of.shards, (of.groups - 1) / of.groups
    gradients = FLOAT * 2 * d_in * d_sae / of.shards
    inside = 2 * within * FLOAT * batch * d_in + within * FLOAT * of.shards * batch * k
    return inside, (3 if of.name == "fsdp" else 2) * between * gradients


def gpu_step(shape: Shape, of: Plan, device: Device = H100) -> Step:
    """Predict a step in bfloat16; `batch` is that of one group."""
    products, hbm, links = device.reached
    inside, across = exchanged(shape, of)
    d_in, d_sae, batch, _ = shape
    return Step(
        2 * batch * d_in * d_sae / of.shards / (products * device.flops),
        memory_traffic(shape, of.shards) / (hbm * device.bandwidth),
        (inside / device.nvlink + across / (device.nvlink if of.gpus <= device.per_node else device.network)) / links,
    )


class Prediction(NamedTuple):
    """A run on GPUs."""

    step: Step
    memory: Memory
    samples_per_second: float
    hours: float
    """Wall time of all tokens."""
    gpu_hours: float
    read_per_gpu: float
    """Bytes per second that each process reads."""


def predict(shape: Shape, of: Plan, tokens: float, chunk: int | None = None) -> Prediction:
    """Predict a run over some tokens, one sample each, read in half precision."""
    step = gpu_step(shape, of)
    rate = shape.batch * of.groups / step.seconds
    hours = tokens / rate / 3600
    read = shape.batch * shape.d_in * HALF / step.seconds
    return Prediction(step, memory(shape, of, half=True, chunk=chunk), rate, hours, hours * of.gpus, read)


def cache_bytes(tokens: float, d_in: int) -> float:
    """Size of a cache in half precision."""
    return tokens * d_in * HALF


def harvest_gpu_hours(tokens: float, parameters: float, device: Device = H100) -> float:
    """Two operations per parameter and token, at the efficiency that products are assumed to reach."""
    return 2 * parameters * tokens / (device.reached[0] * device.flops) / 3600


def main(arguments: list[str] | None = None) -> None:
    """Print a prediction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d_in", type=int, default=4096)
    parser.add_argument("--d_sae", type=int, default=131072)
    parser.add_argument("--batch", type=int, default=8192, help="samples per step and group of GPUs")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--tokens", type=float, default=10e9)
    parser.add_argument("--chunk", type=int, help="chunk_size of the model")
    parser.add_argument("--parameters", type=float, default=7e9, help="parameters of the model that is harvested")
    parser.add_argument("--price", type=float, default=2.5, help="dollars per GPU and hour")
    args = parser.parse_args(arguments)
    for name in ("d_in", "d_sae", "batch", "k", "gpus"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(args, name)}")
    shape = Shape(args.d_in, args.d_sae, args.batch, args.k)
    print(f"{shape}, {args.gpus} x {H100.name}, {args.tokens:.3g} tokens: predicted, never run")
    for name in STRATEGIES if args.gpus > 1 else ("ddp",):
        of = plan(name, args.gpus)
        found = predict(shape, of, args.tokens, args.chunk)
        parts = ", ".join(f"{key} {1e3 * value:.1f}" for key, value in found.step._asdict().items())
        label = f"{name}, {of.groups} groups of {of.shards}" if args.gpus > 1 else "one GPU"
        print(f"{label}: step {1e3 * found.step.seconds:.1f} ms ({parts})")
        print(f"  {found.samples_per_second:,.0f} samples/s, {found.memory.total / 1e9:.1f} GB per GPU")
        print(f"  {found.hours:.1f} h, {found.gpu_hours:,.0f} GPU hours, {args.price * found.gpu_hours:,.0f} dollars")
        print(f"  each process reads {found.read_per_gpu / 1e9:.2f} GB/s")
    harvest = harvest_gpu_hours(args.tokens, args.parameters)
    print(f"cache {cache_bytes(args.tokens, args.d_in) / 1e12:.1f} TB; harvest {harvest:,.0f} GPU hours")


if __name__ == "__main__":
    main()
