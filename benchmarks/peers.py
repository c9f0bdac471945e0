"""The training steps of other libraries, called as those libraries call them.

Each step is the library's own, with its optimizer, its treatment of gradients and of the decoder's norm, and its
bookkeeping of silent latents; only loading, logging and checkpoints are left out. Values are defaults except for the
learning rate (tiny, see `contender`) and for when a silent latent counts as dead: never, or for `topk-auxk` after as
many samples as lie in the resident batches. There a tenth of the latents is silent from the start, so that the
auxiliary loss is at work.

The packages are imported where they are used: `make bench` installs them into an environment of their own.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.contender import LEARNING_RATE, NEVER, Contender, Entry, autocast, silence_some, use_tiny_learning_rate
from benchmarks.problem import N_BATCHES, Problem


class SAELens(Contender):
    """sae-lens: `SAETrainer.step`, which `SAETrainer.fit` calls with every batch.

    It runs `TrainingSAE.training_forward_pass`, counts firing latents, clips the gradients' norm to 1, and steps
    Adam (PyTorch's default implementation) and the schedulers. Decoder norms are free.

    Args:
        architecture: relu, jumprelu, topk or topk-auxk.
        problem: What to train on.
        sparse: TopK's option `use_sparse_activations`, which its documentation recommends in float32. The default
            `rescale_acts_by_decoder_norm` is off then, for its backward pass fails on sparse codes (torch 2.13, CPU).
    """

    def __init__(self, architecture: str, problem: Problem, sparse: bool = False) -> None:
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
        from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        d_in, d_sae, batch, k = problem.shape
        sizes: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "device": str(problem.device)}
        match architecture:
            case "relu":
                self.sae = StandardTrainingSAE(StandardTrainingSAEConfig(**sizes))
            case "jumprelu":
                self.sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**sizes))
            case _:
                options = {"use_sparse_activations": sparse, "rescale_acts_by_decoder_norm": not sparse}
                self.sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=k, **options, **sizes))
        if architecture == "topk-auxk":
            silence_some(self.sae.W_enc.data.T)
        config = SAETrainerConfig(
            total_training_samples=NEVER,
            train_batch_size_samples=batch,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE,
            device=str(problem.device),
            autocast=problem.autocast is not None,
            # a latent is dead after more than this many batches
            dead_feature_window=N_BATCHES - 1 if architecture == "topk-auxk" else NEVER,
        )
        self.trainer = SAETrainer(config, self.sae, iter(problem.batches))
        self.optimizer = self.trainer.optimizer

    def step(self, x: Tensor) -> None:
        """`SAETrainer.step`, and the counter that `fit` advances."""
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def codes(self, x: Tensor) -> Tensor:
        """`TrainingSAE.encode`."""
        codes: Tensor = self.sae.encode(x)
        return codes.to_dense() if codes.is_sparse else codes

    def raise_threshold(self, level: float) -> None:
        """Move the thresholds or biases."""
        if hasattr(self.sae, "threshold"):
            self.sae.threshold.data.fill_(level)
        elif type(self.sae).__name__.startswith("Standard"):
            self.sae.b_enc.data.sub_(level)


class DictionaryLearning(Contender):
    """dictionary-learning: `update` of `StandardTrainer`, `JumpReluTrainer` or `TopKTrainer`, as `trainSAE` calls it.

    The standard trainer steps `ConstrainedAdam`, which projects the gradients of unit-norm atoms, and clips nothing.
    The others project those gradients, clip the norm to 1, step Adam (PyTorch's default implementation) and
    normalize the atoms. Steps count from beyond all warm-ups, so that TopK keeps its running threshold, too.

    Args:
        architecture: relu, jumprelu, topk or topk-auxk.
        problem: What to train on.
    """

    def __init__(self, architecture: str, problem: Problem) -> None:
        from dictionary_learning.trainers import JumpReluTrainer, StandardTrainer, TopKTrainer

        d_in, d_sae, batch, k = problem.shape
        arguments: dict[str, Any] = {
            "steps": 10**6,
            "activation_dim": d_in,
            "dict_size": d_sae,
            "layer": 0,
            "lm_name": "none",
            "lr": LEARNING_RATE,
            "device": str(problem.device),
        }
        match architecture:
            case "relu":
                self.trainer = StandardTrainer(**arguments)
            case "jumprelu":
                self.trainer = JumpReluTrainer(**arguments)
            case _:
                self.trainer = TopKTrainer(k=k, **arguments)
                self.trainer.dead_feature_threshold = NEVER
        if architecture == "topk-auxk":
            self.trainer.dead_feature_threshold = N_BATCHES * batch
            silence_some(self.trainer.ae.encoder.weight.data)
        self.architecture = architecture
        self.optimizer = self.trainer.optimizer
        self.problem = problem
        self.steps = 10_000

    def step(self, x: Tensor) -> None:
        """`update`, in the autocast region that `trainSAE` opens on GPUs."""
        with autocast(self.problem):
            self.trainer.update(self.steps, x)
        self.steps += 1

    def codes(self, x: Tensor) -> Tensor:
        """`Dictionary.encode`."""
        codes: Tensor = self.trainer.ae.encode(x)
        return codes

    def raise_threshold(self, level: float) -> None:
        """Move the thresholds or biases."""
        if self.architecture == "jumprelu":
            self.trainer.ae.threshold.data.fill_(level)
        elif self.architecture == "relu":
            self.trainer.ae.encoder.bias.data.sub_(level)


class Sparsify(Contender):
    """eai-sparsify: what remains of `Trainer.fit` for one SAE whose activations are there.

    The step is written inside `fit`, between a language model's hooks, and cannot be called by itself: its lines are
    repeated here, in their order, with the methods of `SparseCoder` that they call (`set_decoder_norm_to_unit_norm`,
    `forward` with the fused encoder and the eager decoder where there is no Triton, and
    `remove_gradient_parallel_to_decoder_directions`). Nothing is clipped. The configuration's default optimizer is
    signum; Adam is its other choice (PyTorch's, where bitsandbytes is absent), and its weight for aux-k is 0.

    `fit` lowers PyTorch's precision of float32 products to "high"; here it stays what it is for all.

    Args:
        architecture: topk or topk-auxk.
        problem: What to train on.
        signum: Whether to use the default optimizer instead of Adam.
    """

    def __init__(self, architecture: str, problem: Problem, signum: bool = False) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        _, d_sae, batch, k = problem.shape
        config = SparseCoderConfig(num_latents=d_sae, k=k)
        self.sae = SparseCoder(problem.shape.d_in, config, problem.device, dtype=torch.float32)
        self.sae.b_dec.data = problem.batches[0].mean(0)
        self.schedulers: list[Any] = []
        if signum:
            from schedulefree import ScheduleFreeWrapper
            from sparsify.sign_sgd import SignSGD

            self.optimizer = ScheduleFreeWrapper(SignSGD([{"params": self.sae.parameters()}], lr=1.0), momentum=0.95)
            use_tiny_learning_rate(self.optimizer)
            self.optimizer.train()
        else:
            from transformers import get_linear_schedule_with_warmup

            self.optimizer = torch.optim.Adam([{"params": self.sae.parameters(), "lr": LEARNING_RATE}])
            self.schedulers = [get_linear_schedule_with_warmup(self.optimizer, 1000, 10**6)]
        self.auxk_alpha = 0.0
        if architecture == "topk-auxk":
            self.auxk_alpha = 1 / 32
            silence_some(self.sae.encoder.weight.data)
        self.dead_feature_threshold = N_BATCHES * batch - 1
        self.num_tokens_since_fired = torch.zeros(d_sae, device=problem.device, dtype=torch.long)
        self.did_fire = torch.zeros(d_sae, device=problem.device, dtype=torch.bool)

    def step(self, x: Tensor) -> None:
        """The lines of `Trainer.fit`."""
        self.sae.set_decoder_norm_to_unit_norm()
        dead_mask = self.num_tokens_since_fired > self.dead_feature_threshold if self.auxk_alpha > 0 else None
        total_variance = (x - x.mean(0)).pow(2).sum()
        out = self.sae(x=x, y=x, dead_mask=dead_mask, total_variance=total_variance)
        self.did_fire[out.latent_indices.flatten()] = True
        float(out.fvu.detach())  # fit keeps running means of both
        if self.auxk_alpha > 0:
            float(out.auxk_loss.detach())
        (out.fvu + self.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        for scheduler in self.schedulers:
            scheduler.step()
        with torch.no_grad():
            self.num_tokens_since_fired += len(x)
            self.num_tokens_since_fired[self.did_fire] = 0
            self.did_fire.zero_()

    def codes(self, x: Tensor) -> Tensor:
        """`SparseCoder.encode`, made dense."""
        out = self.sae.encode(x)
        return torch.zeros_like(out.pre_acts).scatter(-1, out.top_indices, out.top_acts)

    def raise_threshold(self, level: float) -> None:
        """TopK has none."""


ENTRIES = [
    *(
        Entry("sae-lens", a, lambda problem, a=a: SAELens(a, problem), "sae_lens", in_sweep=a != "topk-auxk")
        for a in ("relu", "jumprelu", "topk", "topk-auxk")
    ),
    Entry("sae-lens, sparse", "topk", lambda problem: SAELens("topk", problem, sparse=True), "sae_lens"),
    *(
        Entry(
            "dictionary-learning",
            a,
            lambda problem, a=a: DictionaryLearning(a, problem),
            "dictionary_learning",
            in_sweep=a != "topk-auxk",
        )
        for a in ("relu", "jumprelu", "topk", "topk-auxk")
    ),
    *(
        Entry("eai-sparsify", a, lambda problem, a=a: Sparsify(a, problem), "sparsify", in_sweep=a != "topk-auxk")
        for a in ("topk", "topk-auxk")
    ),
    Entry(
        "eai-sparsify, signum",
        "topk",
        lambda problem: Sparsify("topk", problem, signum=True),
        "sparsify",
        in_sweep=False,
    ),
]
