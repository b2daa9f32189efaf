"""The Markdown card of a verification, and cards side by side."""

from collections.abc import Sequence

from tops_engine.evaluation.tables import Column, Table
from tops_engine.verification.result import ParityCase, SpeedRow, Verification


def card(result: Verification, picture: str) -> str:
    """Return the card as Markdown; ``picture`` is the file name of its picture."""
    verdict = "Everything held." if result.held else "Not everything held:"
    parts = [
        f"# {result.model}: `tops verify`",
        f"{verdict} {_parity_sentence(result.parity)}",
        *[f"- {problem}" for problem in result.problems],
        _markdown(["", ""], [[name, text] for name, text in _facts(result).items()]),
        "## Speed",
        "Medians of rounds in turns. *First token* includes preparing the picture and the vision tower.",
        _markdown(SPEED_HEADINGS, [_speed_cells(row) for row in result.speed]),
        "## Fidelity",
        "How the unpruned model's own answers about the packaged pictures change: *loss +* in nats a token, *same* "
        "answers, *KL* of the first token in nats. *resize* is a smaller picture in place of pruning; with "
        "*enlarge=true* it is enlarged again and saves nothing.",
        _markdown(
            ["pruning", "share of tokens", "loss +", "same", "KL"],
            [
                [
                    f"`{row.pruning}`",
                    _percent(row.layer_average),
                    _number(row.loss_increase),
                    _percent(row.agreement),
                    _number(row.first_token_kl) if row.error is None else row.error,
                ]
                for row in result.fidelity
            ],
        ),
        "## Checks",
        _markdown(["check", "result"], _checks(result)),
        *[f"- {note}" for note in result.notes],
        f"![Which tokens are kept]({picture})",
        "## Repeat it",
        f"```bash\n{result.command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def comparison(results: Sequence[Verification]) -> Table:
    """Return a table with one column for each verification."""
    title = "Verifications side by side"
    table = Table(title, [Column(result.model, wraps=True, align="left") for result in results])
    columns = [_all_figures(result) for result in results]
    for name in dict.fromkeys(name for figures in columns for name in figures):
        table.add_row(name, *(figures.get(name, "-") for figures in columns))
    return table


SPEED_HEADINGS = [
    "keep", "visual tokens", "first token ms", "times unpruned", "selection ms", "next token ms", "answers/s alone",
    "answers/s in a batch", "peak GiB", "J an answer",
]  # fmt: skip


def _speed_cells(row: SpeedRow) -> list[str]:
    alone, largest = row.throughput[0], row.throughput[-1]
    return [
        "unpruned" if row.keep == 1.0 else str(row.keep),
        f"{row.visual_tokens:.1f}",
        f"{1e3 * row.first_token_s:.1f}",
        f"{row.first_token_ratio:.2f}",
        f"{1e3 * row.selection_s:.1f}",
        "-" if row.next_token_s is None else f"{1e3 * row.next_token_s:.2f}",
        f"{alone.answers_per_s:.2f}",
        f"{largest.answers_per_s:.2f} ({largest.batch})",
        "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}",
        "-" if row.energy_j is None else f"{row.energy_j:.1f}",
    ]


def _facts(result: Verification) -> dict[str, str]:
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    processor = machine.get("gpu") or f"{machine.get('cpu')} ({machine.get('threads')} threads)"
    return {
        "model": f"{result.model} ({result.model_type}, {result.dtype})",
        "commit": result.commit or "-",
        "machine": f"{processor}, {result.device}, load {machine.get('load_average')}",
        "versions": versions,
        "date": f"{result.date}, {result.seconds:.0f} s",
    }


def _parity_sentence(cases: Sequence[ParityCase]) -> str:
    asked = [case for case in cases if case.skipped is None]
    exact = sum(not case.differences for case in asked)
    sentence = f"{exact} of {len(asked)} unpruned answers are those of transformers token for token"
    if exact < len(asked):
        ties = sum(bool(case.differences) and all(one.tie for one in case.differences) for case in asked)
        sentence += f"; {ties} of the others only differ where two tokens are equally likely within rounding"
    return sentence + "."


def _checks(result: Verification) -> list[list[str]]:
    rows = []
    for case in result.parity:
        words = [
            f"{one.where}: token {one.position} is {one.tokens[1]!r} instead of {one.tokens[0]!r}, logits "
            f"{_pair(one.engine_logits)} here and {_pair(one.transformers_logits)} in transformers, "
            f"{'a tie' if one.tie else 'no tie'}"
            for one in case.differences
        ]
        text = f"same {case.answer_tokens} tokens" if not words else "; ".join(words)
        if case.skipped is None:
            text += f" (logits within {case.logits_difference:.1e})"
        rows.append([f"unpruned, {case.prompt}", case.skipped or text])
    for check in result.budgets:
        stages = ", ".join(
            f"{stage.num_tokens} → {stage.num_kept} {'same' if stage.same else f'shortfall {stage.shortfall:.1e}'}"
            for stage in check.stages
        )
        average = f"layer-average {check.layer_average:.2f} of {check.keep * check.visual_tokens:.2f}"
        rows.append([f"kept tokens at {check.keep}", f"{stages}; {average}"])
    for masked in result.masked:
        difference = f"{masked.largest_difference:.1e}, allowed {masked.tolerance:.1e}"
        rows.append([f"masked reference, {masked.positions} positions", difference])
    return rows


def _all_figures(result: Verification) -> dict[str, str]:
    """Return everything that is compared, by the name of its row."""
    figures = _facts(result)
    figures["verdict"] = "everything held" if result.held else " ".join(result.problems)
    figures["parity"] = _parity_sentence(result.parity)
    for row in result.speed:
        cells = _speed_cells(row)
        figures |= {f"{cells[0]}: {heading}": cell for heading, cell in zip(SPEED_HEADINGS[1:], cells[1:], strict=True)}
    for fidelity in result.fidelity:
        figures[f"{fidelity.pruning}: loss +"] = _number(fidelity.loss_increase)
        figures[f"{fidelity.pruning}: same"] = _percent(fidelity.agreement)
    return figures


def _pair(logits: tuple[float, float]) -> str:
    return f"{logits[0]:.3f} and {logits[1]:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
