"""Compute the minimum time of a device for one token of an answer: every weight, key and value is read once."""

import time

import torch

from tops_engine.answers.report import Answer
from tops_engine.families import Decoder

# Bytes. The total exceeds every cache; a piece has the size of a layer's matrices.
PIECE, NUM_PIECES = 128 * 2**20, 8
PASSES = 3


def bytes_a_token(decoder: Decoder, answer: Answer) -> int:
    """Return the bytes that a token halfway through the answer reads: keys, values, all weights but the token table."""
    modules = [*decoder.text_model.layers, decoder.text_model.norm, decoder.lm_head]
    weights = sum(weight.nbytes for module in modules for weight in module.parameters())
    shape, written = decoder.shape, answer.usage.completion_tokens
    one_token = shape.kv_cache_bytes([0] * decoder.num_layers, 1, decoder.dtype.itemsize)
    return weights + answer.kv_cache_bytes - one_token * (written // 2)


def bandwidth(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the device's current read bandwidth in bytes a second: matrices times a vector or summed, the faster."""
    width = 4096
    height = PIECE // dtype.itemsize // width
    matrices = [torch.ones(height, width, device=device, dtype=dtype) for _ in range(NUM_PIECES)]
    vector = torch.ones(width, device=device, dtype=dtype)
    seconds = []
    for work in (lambda matrix: matrix @ vector, torch.sum):
        work(matrices[0])
        _wait(device)
        begun = time.perf_counter()
        for _ in range(PASSES):
            for matrix in matrices:
                work(matrix)
        _wait(device)
        seconds.append((time.perf_counter() - begun) / PASSES)
    return sum(matrix.nbytes for matrix in matrices) / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
