"""The formulas of sae_lightning.nn written out in NumPy with gradients by hand: slow, plain, independent of torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def squared_distances(x: Array, prototypes: Array) -> Array:
    """||x_b - w_i||^2 as the sum that it is, [batch, d_sae]."""
    return ((x[:, None, :] - prototypes[None, :, :]) ** 2).sum(-1)


def sparsemax_row(v: Array) -> Array:
    """The projection of one row onto the simplex, by sorting (Martins and Astudillo 2016, algorithm 1)."""
    v = np.asarray(v, dtype=np.float64)
    v = v - v.max()
    descending = np.sort(v)[::-1]
    support = 1
    while support < len(v) and 1 + (support + 1) * descending[support] > descending[: support + 1].sum():
        support += 1
    tau = (descending[:support].sum() - 1) / support
    return np.maximum(v - tau, 0.0)


def sparsemax(v: Array) -> Array:
    """`sparsemax_row` over the last dimension of any array."""
    v = np.asarray(v, dtype=np.float64)
    return np.stack([sparsemax_row(row) for row in v.reshape(-1, v.shape[-1])]).reshape(v.shape)


def k_largest(v: Array, k: int, among: Array | None = None) -> Array:
    """One where an entry is among the k largest of its row (of those that `among` allows)."""
    mask = np.zeros_like(v)
    for row, values in enumerate(v):
        order = sorted(range(len(values)), key=lambda i: -values[i])
        for i in [i for i in order if among is None or among[i]][:k]:
            mask[row, i] = 1.0
    return mask


@dataclass
class Model:
    """Everything that determines an SAE's loss, as plain values.

    `projection` is one of orthant, jump, k_sparse, simplex; `regularizer` one of none, l1, l0, distance, auxk.
    """

    projection: str
    regularizer: str
    gamma: float
    W_enc: Array
    W_dec: Array
    b_enc: Array | None = None
    b_dec: Array | None = None
    subtract_decoder_bias: bool = False
    unit_norm: bool = False
    pre_code_scale: float = 1.0
    raw_lambda: float | None = None
    offset: Array | None = None
    log_threshold: Array | None = None
    bandwidth: float = 1.0
    k: int = 1
    k_aux: int = 1
    dead: Array | None = None
    input_mean: Array | float = 0.0
    input_scale: float = 1.0


@dataclass
class Result:
    """Outputs of `evaluate`: the forward pass, the regularizer per sample, the loss and its gradients by name."""

    x_hat: Array
    codes: Array
    pre_codes: Array
    penalty: Array
    loss: float
    gradients: dict[str, Any]


def _project(m: Model, v: Array) -> tuple[Array, Array]:
    """Codes, and a mask of the entries that are in the support."""
    if m.projection == "simplex":
        codes = sparsemax(v)
        return codes, (codes > 0).astype(float)
    if m.projection == "k_sparse":
        support = k_largest(v, m.k) * (v > 0)
    elif m.projection == "jump":
        assert m.log_threshold is not None
        support = (v > np.exp(m.log_threshold)).astype(float)
    else:
        support = (v > 0).astype(float)
    return v * support, support


def _atoms(m: Model) -> Array:
    return m.W_dec / (np.sqrt((m.W_dec**2).sum(1, keepdims=True)) + 1e-6) if m.unit_norm else m.W_dec


def _grad_of_weight(m: Model, grad_atoms: Array) -> Array:
    """From the gradient of the atoms to that of the weight: derivative of w / (||w|| + 1e-6)."""
    if not m.unit_norm:
        return grad_atoms
    norm = np.sqrt((m.W_dec**2).sum(1, keepdims=True))
    along = (m.W_dec * grad_atoms).sum(1, keepdims=True)
    return grad_atoms / (norm + 1e-6) - m.W_dec * along / (norm * (norm + 1e-6) ** 2)


def evaluate(m: Model, x_raw: Array) -> Result:  # noqa: PLR0912, PLR0915  (one pass, top to bottom)
    """Forward pass and gradients of mean_batch(sum_features (x - x_hat)^2) + gamma * mean_batch(regularizer)."""
    batch = len(x_raw)
    x = (x_raw - m.input_mean) / m.input_scale
    seen = x - m.b_dec if m.subtract_decoder_bias else x

    # forward
    if m.raw_lambda is None:
        raw = np.einsum("bd,id->bi", seen, m.W_enc) + (0.0 if m.b_enc is None else m.b_enc)
        pre_codes = m.pre_code_scale * raw
    else:
        scale = np.log1p(np.exp(m.raw_lambda))
        distances = squared_distances(seen, m.W_enc)
        pre_codes = -scale * distances + (0.0 if m.offset is None else m.offset)
    codes, support = _project(m, pre_codes)
    atoms = _atoms(m)
    x_hat = np.einsum("bi,id->bd", codes, atoms) + (0.0 if m.b_dec is None else m.b_dec)
    error = x_hat - x

    # gradients of the squared error with respect to reconstruction, atoms and codes
    grad_x_hat = 2 * error / batch
    grad_atoms = np.einsum("bi,bd->id", codes, grad_x_hat)
    grad_codes = np.einsum("bd,id->bi", grad_x_hat, atoms)
    grad_pre_codes = np.zeros_like(pre_codes)
    grad_distances = np.zeros_like(pre_codes)
    grad_threshold = 0.0
    near = 0.0
    if m.projection == "jump":  # straight-through: a rectangle kernel of width `bandwidth` around the threshold
        threshold = np.exp(m.log_threshold)
        near = (np.abs(pre_codes - threshold) < m.bandwidth / 2).astype(float)

    # the regularizer, one value per sample, and its gradients
    weight = m.gamma / batch
    penalty = np.zeros(batch)
    if m.regularizer == "l1":
        penalty = np.abs(codes).sum(1)
        grad_codes = grad_codes + weight
    elif m.regularizer == "l0":
        penalty = (pre_codes > threshold).sum(1).astype(float)
        grad_threshold = -weight * near.sum(0) / m.bandwidth
    elif m.regularizer == "distance":
        penalty = (codes * distances).sum(1)
        grad_codes = grad_codes + weight * distances
        grad_distances = grad_distances + weight * codes
    elif m.regularizer == "auxk" and m.dead.any():
        aux_support = k_largest(pre_codes, m.k_aux, m.dead) * (pre_codes > 0)
        aux_codes = pre_codes * aux_support
        missing = np.einsum("bi,id->bd", aux_codes, atoms) - (x - x_hat)  # x - x_hat counts as a constant
        penalty = (missing**2).sum(1)
        grad_atoms = grad_atoms + np.einsum("bi,bd->id", aux_codes, 2 * weight * missing)
        grad_pre_codes = grad_pre_codes + aux_support * np.einsum("bd,id->bi", 2 * weight * missing, atoms)

    # through the projection
    if m.projection == "simplex":
        mean = (grad_codes * support).sum(1, keepdims=True) / support.sum(1, keepdims=True)
        grad_pre_codes = grad_pre_codes + support * (grad_codes - mean)
    else:
        grad_pre_codes = grad_pre_codes + support * grad_codes
    gradients: dict[str, Any] = {}
    if m.projection == "jump":
        grad_threshold = grad_threshold - threshold / m.bandwidth * (near * grad_codes).sum(0)
        gradients["projection.log_threshold"] = grad_threshold * threshold

    # through the encoder
    if m.raw_lambda is None:
        grad_raw = m.pre_code_scale * grad_pre_codes
        gradients["encoder.weight"] = np.einsum("bi,bd->id", grad_raw, seen)
        grad_seen = np.einsum("bi,id->bd", grad_raw, m.W_enc)
        if m.b_enc is not None:
            gradients["encoder.bias"] = grad_raw.sum(0)
    else:
        if m.offset is not None:
            gradients["encoder.offset"] = grad_pre_codes.sum(0)
        grad_distances = grad_distances - scale * grad_pre_codes
        difference = seen[:, None, :] - m.W_enc[None]
        gradients["encoder.weight"] = -2 * np.einsum("bi,bid->id", grad_distances, difference)
        grad_seen = 2 * np.einsum("bi,bid->bd", grad_distances, difference)
        gradients["encoder.raw_lambda"] = -(grad_pre_codes * distances).sum() / (1 + np.exp(-m.raw_lambda))

    # the decoder
    gradients["decoder.weight"] = _grad_of_weight(m, grad_atoms)
    if m.b_dec is not None:
        gradients["decoder.bias"] = grad_x_hat.sum(0) - (grad_seen.sum(0) if m.subtract_decoder_bias else 0.0)

    loss = (error**2).sum(1).mean() + m.gamma * penalty.mean()
    raw_x_hat = x_hat * m.input_scale + m.input_mean
    return Result(raw_x_hat, codes, pre_codes, penalty, loss, gradients)
