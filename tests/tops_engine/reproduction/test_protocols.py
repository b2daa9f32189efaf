"""Test that the data of the papers is consistent: published rows average to the published figures."""

import pytest

from tops_engine.errors import InvalidInput
from tops_engine.methods import METHODS
from tops_engine.reproduction.protocols import Protocol, Row, find_protocol, read_protocols, relative_average

PROTOCOLS = read_protocols().protocols
WITH_SCORES = [(protocol, row) for protocol in PROTOCOLS for row in protocol.rows if row.scores]


@pytest.mark.parametrize(
    ("protocol", "row"), WITH_SCORES, ids=[f"{p.paper}-{r.method}-{r.budget}" for p, r in WITH_SCORES]
)
def test_the_average_of_published_scores_is_the_published_average(protocol: Protocol, row: Row) -> None:
    assert set(row.scores) == set(protocol.benchmarks)
    assert relative_average(row.scores, protocol.unpruned, protocol.average) == pytest.approx(row.relative, abs=0.16)


def test_the_two_ways_to_average_differ() -> None:
    protocol = find_protocol("llava-1.5-7b", "11")
    row = protocol.row("fastv", 128)
    assert row is not None
    ours, other = (relative_average(row.scores, protocol.unpruned, one) for one in ("ratio of means", "mean of ratios"))
    assert abs(ours - other) > 0.1


def test_everything_that_the_data_names_exists() -> None:
    known = read_protocols()
    for protocol in known.protocols:
        assert protocol.model in known.models
        assert set(protocol.benchmarks) <= set(known.benchmarks)
        assert {row.method for row in protocol.rows} <= set(METHODS)
        assert {row.budget for row in protocol.rows} <= set(protocol.budgets)
    presets = METHODS["tops"].presets
    for protocol in known.protocols:
        preset = known.models[protocol.model].preset
        if protocol.paper == "2606.27161":
            assert all(f"{preset}/{budget}" in presets for budget in protocol.budgets)


def test_a_protocol_is_found_by_table_and_by_paper() -> None:
    assert find_protocol("llava-1.5-7b").paper == "2606.27161"
    assert find_protocol("llava-1.5-7b", "1") is find_protocol("llava-1.5-7b", "11")
    assert find_protocol("llava-1.5-7b", paper="2502.11501").average == "mean of ratios"
    assert find_protocol("mini").benchmarks == ["mini-scenes"]
    with pytest.raises(InvalidInput, match="There is no such table"):
        find_protocol("llava-next-7b", "11")
    with pytest.raises(InvalidInput, match=r"choose one of llava-1\.5-7b"):
        find_protocol("llava")
