"""Run `tops verify` with less to measure: the same checks, with fewer rounds, tokens and questions."""

import pytest

from tops_engine.settings import Generation
from tops_engine.verification import fidelity, parity, pictures, speed


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(speed, "GENERATION", Generation(max_tokens=3))
    monkeypatch.setattr(speed, "MOST_PROMPTS_CPU", 2)
    monkeypatch.setattr(fidelity, "GENERATION", Generation(max_tokens=2))
    monkeypatch.setattr(pictures, "QUESTIONS", pictures.QUESTIONS[:1])
    monkeypatch.setattr(parity, "NUM_TOKENS", 6)
