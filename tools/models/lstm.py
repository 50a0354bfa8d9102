"""A sequence tagger: embedding, bidirectional LSTM, linear."""

from __future__ import annotations

from torch import Tensor, nn

from .init import seed_parameters

__all__ = ["LSTMTagger", "lstm_tagger"]


class LSTMTagger(nn.Module):
    """One tag a token: token ids int64 ``[N, tokens]`` → logits ``[N, tokens, tags]``.

    Args:
        vocabulary: number of token ids.
        embedding: width of the embeddings.
        hidden: width of the LSTM in each direction.
        tags: number of logits; 17 are those of Universal Dependencies' parts of speech.
    """

    def __init__(self, vocabulary: int, embedding: int, hidden: int, tags: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, tags)

    def forward(self, input_ids: Tensor) -> Tensor:
        """The logits of the tags of ``input_ids``."""
        states, _last = self.lstm(self.embedding(input_ids))
        return self.linear(states)


def lstm_tagger(
    *, vocabulary: int = 10_000, embedding: int = 128, hidden: int = 256, tags: int = 17, seed: int = 0
) -> LSTMTagger:
    """A tagger in eval mode, its parameters drawn from ``seed``."""
    return seed_parameters(LSTMTagger(vocabulary, embedding, hidden, tags), seed)
