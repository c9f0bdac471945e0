"""Time of a whole training step of every architecture, as a multiple of the bare dense product.

Run it with `make bench`, or for one shape: `python benchmarks/step.py --shapes 768,12288,1024,32`.

A step is forward, backward, clipping and Adam, as the training loop does them. The reference is the encoder's product
`[batch, d_in] x [d_in, d_sae]` alone, timed in turn with the step so that both see the same machine. Quote the ratios:
absolute times vary with what else the machine does.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from sae_lightning.modules import BaseSAE, JumpReLUSAE, ReLUSAE, SpaDE, TopKSAE

SHAPES = ((2, 128, 512, 14), (128, 512, 2048, 16), (768, 12288, 1024, 32))  # d_in, d_sae, batch, k


def architectures(d_in: int, d_sae: int, k: int) -> dict[str, BaseSAE]:
    """One SAE of each kind; SpaDE's lambda is set so that about k latents fire."""
    return {
        "ReLUSAE": ReLUSAE(d_in, d_sae),
        "JumpReLUSAE": JumpReLUSAE(d_in, d_sae),
        "TopKSAE": TopKSAE(d_in, d_sae, k=k),
        "SpaDE": SpaDE(d_in, d_sae, l0_init=float(k)),
    }


def training_step(sae: BaseSAE, x: torch.Tensor) -> Callable[[], None]:
    """The step as a function without arguments."""
    sae.initialize(x)
    optimizer, _ = sae.make_optimizer()

    def step() -> None:
        optimizer.zero_grad()
        sae.learn(x).terms["loss"].backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return step


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    step: Callable[[], object], product: Callable[[], object], repeats: int, device: torch.device
) -> list[float]:
    """Median step time, median ratio to the product, and the ratios' quartiles."""
    for _ in range(3):
        step()
        product()
    pairs = [(seconds(step, device), seconds(product, device)) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    quartiles = statistics.quantiles(ratios, n=4)
    return [statistics.median(a for a, _ in pairs), statistics.median(ratios), quartiles[0], quartiles[2]]


def main() -> None:
    """Print one Markdown table per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="*", default=[",".join(map(str, s)) for s in SHAPES], help="d_in,d_sae,batch,k"
    )
    parser.add_argument("--repeats", type=int, default=21, help="timed pairs of step and product")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; torch's choice if left out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} CPU threads, fp32, {args.repeats} repeats\n")
    for shape in args.shapes:
        d_in, d_sae, batch, k = map(int, shape.split(","))
        x = torch.randn(batch, d_in, device=device)
        weight = torch.randn(d_sae, d_in, device=device)
        print(f"d_in {d_in}, d_sae {d_sae}, batch {batch}, k {k}\n")
        print("| SAE | step, ms | times the dense product | quartiles | samples/s |\n|---|---|---|---|---|")
        for name, sae in architectures(d_in, d_sae, k).items():
            step = training_step(sae.to(device), x)
            time_, ratio, low, high = measure(step, lambda x=x, weight=weight: x @ weight.T, args.repeats, device)
            print(f"| {name} | {1e3 * time_:.2f} | {ratio:.2f} | {low:.2f} to {high:.2f} | {batch / time_:,.0f} |")
        print()


if __name__ == "__main__":
    main()
