"""Encoders of the BERT family, with the layout and the state-dict names of Hugging Face's ``BertModel``.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2018); Wang et al., "MiniLM: Deep
Self-Attention Distillation" (2020). The pooler, which only classification of whole sequences reads, is left
out.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .init import seed_parameters

__all__ = ["BERT_BASE", "MINILM", "Bert", "BertConfig", "bert", "bert_base", "minilm"]


@attrs.frozen
class BertConfig:
    """The sizes of an encoder, under the names that its published configurations have.

    Args:
        num_hidden_layers: number of layers.
        hidden_size: width of the tokens.
        num_attention_heads: number of attention heads, which divides ``hidden_size``.
        intermediate_size: width between the two linears of a layer.
        vocab_size: number of token ids.
        max_position_embeddings: the longest sequence.
        type_vocab_size: number of kinds of segments; the model here reads one, so all tokens are of kind 0.
        dropout: probability of dropout of embeddings, of attention and of the outputs of each layer.
    """

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int = 30_522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    dropout: float = 0.1


BERT_BASE = BertConfig(num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
MINILM = BertConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536)


def _norm(config: BertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=1e-12)


class Embeddings(nn.Module):
    """Token ids ``[N, tokens]`` → ``[N, tokens, hidden_size]``."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = _norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        """The embeddings of words, of their positions and of segment kind 0, added and normalized."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        x = x + self.token_type_embeddings(torch.zeros_like(positions))
        return self.dropout(self.LayerNorm(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention on ``[N, tokens, hidden_size]``, without the output projection."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What each token of ``x`` gathers from the tokens that ``mask`` lets it see."""
        q, k, v = (self._heads(linear(x)) for linear in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return found.transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class AddAndNorm(nn.Module):
    """A linear and dropout beside a shortcut, then LayerNorm."""

    def __init__(self, in_features: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = _norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The normalized sum, ``[N, tokens, hidden_size]``."""
        return self.LayerNorm(self.dropout(self.dense(x)) + shortcut)


class Attention(nn.Module):
    """Self-attention with its output projection and shortcut."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = AddAndNorm(config.hidden_size, config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The output for ``x``."""
        return self.output(self.self(x, mask), x)


class Intermediate(nn.Module):
    """The wide linear of a layer, and gelu."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """The output for ``x``."""
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """One layer of the encoder, on ``[N, tokens, hidden_size]``."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config.intermediate_size, config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The layer's output for ``x``."""
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """All layers, one after the other."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The last layer's output for ``x``."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Bert(nn.Module):
    """An encoder: token ids int64 ``[N, tokens]`` → ``[N, tokens, hidden_size]``."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The last hidden state; ``attention_mask`` ``[N, tokens]`` is 0 where a token is padding."""
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        return self.encoder(self.embeddings(input_ids), mask)


def bert(config: BertConfig, *, seed: int = 0) -> Bert:
    """The encoder of ``config`` in eval mode, its parameters drawn from ``seed``."""
    return seed_parameters(Bert(config), seed)


def bert_base(*, seed: int = 0) -> Bert:
    """BERT-base in eval mode, its parameters drawn from ``seed``."""
    return bert(BERT_BASE, seed=seed)


def minilm(*, seed: int = 0) -> Bert:
    """MiniLM of 6 layers of width 384 in eval mode, its parameters drawn from ``seed``."""
    return bert(MINILM, seed=seed)
