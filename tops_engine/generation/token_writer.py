"""The tokens of a batch of answers, one step after another."""

from torch import Tensor

from tops_engine.generation.decode import Decoding
from tops_engine.generation.sampling import Sampler, TokensInTransit
from tops_engine.generation.static import StaticDecoding


class TokenWriter:
    """The loop that writes one token of each sequence per step.

    Parameters
    ----------
    decoding : computes the logits of the next token.
    sampler : chooses the token.
    max_new : the most tokens to write.
    runs_ahead : whether the next step is launched before the tokens of this one are read, so that a GPU works while
        the host turns tokens into text. The last step may be wasted: nobody reads its tokens.
    """

    def __init__(
        self, decoding: Decoding | StaticDecoding, sampler: Sampler, max_new: int, runs_ahead: bool = False
    ) -> None:
        self.decoding = decoding
        self._sampler = sampler
        self._max_new = max_new
        self._runs_ahead = runs_ahead
        self._ahead: TokensInTransit | None = None
        self._num_chosen = 0

    def choose(self, logits: Tensor) -> TokensInTransit:
        """Choose a token of each sequence from logits, float32 [B, vocab]."""
        self._last = self._sampler(logits)
        self._num_chosen += 1
        return TokensInTransit(self._last)

    def write(self) -> TokensInTransit:
        """Run the model on the last tokens and choose the next ones."""
        return self.choose(self.decoding.step(self._last))

    def next(self) -> TokensInTransit:
        """Return the next tokens, which may have been launched before."""
        tokens = self._ahead or self.write()
        self._ahead = self.write() if self._runs_ahead and self._num_chosen < self._max_new else None
        return tokens
