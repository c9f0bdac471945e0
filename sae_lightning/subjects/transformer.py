"""A small decoder-only transformer, whose activations an SAE can explain."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the usual name)

from sae_lightning.nn.parts import require_positive

_STD = 0.02  # standard deviation of initial weights


class Embedding(nn.Module):
    """Sum of token and position embeddings.

    Args:
        n_tokens: Size of the vocabulary.
        n_positions: Number of positions.
        width: Size of the embeddings.
    """

    def __init__(self, n_tokens: int, n_positions: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(n_tokens, width)
        self.positions = nn.Embedding(n_positions, width)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the residual stream before the first block, `(..., length, width)`."""
        x: Tensor = self.tokens(tokens) + self.positions(positions)
        return x


class Attention(nn.Module):
    """Multi-head self-attention without biases.

    Args:
        width: Size of the residual stream; a multiple of `n_heads`.
        n_heads: Attention heads.
        causal: Whether a token attends to earlier tokens only, unless a mask is given.
    """

    def __init__(self, width: int, n_heads: int, causal: bool = True) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.causal = causal
        self.to_heads = nn.Linear(width, 3 * width, bias=False)
        self.from_heads = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Apply attention to `x`, `(n, length, width)`.

        Args:
            x: Input.
            mask: True where a token attends, `(n, 1, length, length)`; None takes the causal mask if `causal`, else
                full attention.
        """
        n, length, width = x.shape
        q, k, v = self.to_heads(x).view(n, length, 3, self.n_heads, width // self.n_heads).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal and mask is None)
        merged: Tensor = self.from_heads(found.transpose(1, 2).reshape(n, length, width))
        return merged


class Block(nn.Module):
    """Pre-LayerNorm transformer block: attention, then an MLP of four times the width, each with a residual connection.

    Args:
        width: Size of the residual stream; a multiple of `n_heads`.
        n_heads: Attention heads.
        causal: Whether attention is causal unless a mask is given.
    """

    def __init__(self, width: int, n_heads: int, causal: bool = True) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = Attention(width, n_heads, causal)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the residual stream after this block."""
        x = x + self.attention(self.attention_norm(x), mask)
        after: Tensor = x + self.mlp(self.mlp_norm(x))
        return after


class Transformer(nn.Module):
    """Decoder-only transformer: pre-LayerNorm, learned positions, no biases, unembedding tied to the embedding.

    A row may hold several sentences (segments): a token attends to itself and earlier tokens of its segment only.

    Args:
        n_tokens: Size of the vocabulary.
        width: Size of the residual stream; a multiple of `n_heads`.
        n_layers: Number of blocks, at least 1.
        n_heads: Attention heads per block, at least 1.
        n_positions: Maximum number of tokens of a sentence, including the token that begins it.

    Raises:
        ValueError: If a size is out of range.

    Example:
        >>> import torch
        >>> from sae_lightning.subjects import Transformer
        >>> model = Transformer(n_tokens=10, width=8, n_layers=2, n_heads=2, n_positions=16)
        >>> model(torch.tensor([[1, 3, 4]])).shape
        torch.Size([1, 3, 10])
    """

    def __init__(self, n_tokens: int, width: int, n_layers: int, n_heads: int, n_positions: int) -> None:
        super().__init__()
        sizes = {"n_tokens": n_tokens, "width": width, "n_layers": n_layers, "n_heads": n_heads}
        for name, value in {**sizes, "n_positions": n_positions}.items():
            require_positive(name, value)
        if width % n_heads:
            raise ValueError(f"width must be a multiple of n_heads = {n_heads}, but is {width}")
        self.n_positions = n_positions
        self.embed = Embedding(n_tokens, n_positions, width)
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=_STD)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Return the logits of the next token.

        Args:
            tokens: int64 `(n, length)`.
            positions: Position of each token in its sentence, `(n, length)`; None for one sentence per row.
            segments: Index of each token's sentence, `(n, length)`; None for one sentence per row.

        Returns:
            Logits, `(n, length, n_tokens)`.

        Raises:
            ValueError: If a sentence has more tokens than the model has positions.
        """
        length = tokens.shape[-1]
        if positions is None:
            positions = torch.arange(length, device=tokens.device).expand_as(tokens)
        if length > self.n_positions and int(positions.max()) >= self.n_positions:
            raise ValueError(
                f"a sequence must have at most n_positions = {self.n_positions} tokens, "
                f"but one has {int(positions.max()) + 1}"
            )
        mask = None
        if segments is not None:
            earlier = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
            mask = ((segments[:, :, None] == segments[:, None, :]) & earlier)[:, None]
        x = self.embed(tokens, positions)
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.norm(x) @ self.embed.tokens.weight.T
        return logits

    @torch.no_grad()
    def generate(
        self, n: int, begin: int, end: int, generator: torch.Generator, max_tokens: int | None = None
    ) -> Tensor:
        """Sample sequences from the model, token by token, until each has ended.

        Args:
            n: Number of sequences.
            begin: Token that begins each sequence.
            end: Token that ends a sequence; it also fills the rest of the row.
            generator: Source of randomness, on the CPU.
            max_tokens: Maximum number of tokens, `begin` excluded; None takes the model's number of positions.

        Returns:
            Tokens without `begin`, int64 `(n, length)` with `length <= max_tokens`; a row without `end` was truncated.
        """
        device = self.norm.weight.device
        tokens = torch.full((n, 1), begin, device=device)
        going_on = torch.ones(n, dtype=torch.bool, device=device)
        for _ in range(self.n_positions if max_tokens is None else min(max_tokens, self.n_positions)):
            # compute only the rows that have not ended
            logits = self(tokens[going_on])[:, -1].float()
            drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator).to(device)
            new = torch.full((n, 1), end, device=device)
            new[going_on] = drawn
            tokens = torch.cat([tokens, new], 1)
            going_on = tokens[:, -1] != end
            if not going_on.any():
                break
        return tokens[:, 1:]
