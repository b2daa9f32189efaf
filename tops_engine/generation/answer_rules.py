"""What the answers of a batch follow: where each ends, a grammar, and a budget of reasoning."""

from collections.abc import Sequence

from tops_engine.conversation.thinking import writes_marks
from tops_engine.conversation.tools import Tools
from tops_engine.families import Family, Prompt
from tops_engine.generation.constraint import Constraint
from tops_engine.generation.grammars import json_grammar
from tops_engine.generation.planning import Group, room_for_answer
from tops_engine.generation.reasoning import ReasoningBudget, ReasoningState, ReasoningTokens
from tops_engine.generation.sequence import RunningSequence
from tops_engine.generation.text_stream import TextStream
from tops_engine.generation.tool_calls import CallReader, special_marks, tool_grammar
from tops_engine.methods import Positions
from tops_engine.settings import Generation


class AnswerRules:
    """What the answers to prompts follow.

    Parameters
    ----------
    family : the loaded model.
    prompts : what is answered.
    generation, tools : how, and with which functions.
    """

    def __init__(self, family: Family, prompts: Sequence[Prompt], generation: Generation, tools: Tools | None) -> None:
        self._family = family
        self._prompts = prompts
        self._generation = generation
        self._tools = tools
        self._reasoning_tokens = ReasoningTokens.of(family.tokenizer)

    def sequences(self, groups: Sequence[Sequence[Group]], positions: Positions) -> list[RunningSequence]:
        """Return the answers to write; check that each prompt fits into the context.

        Raises
        ------
        TopsError
            If a prompt does not fit.
        """
        family, generation, tools = self._family, self._generation, self._tools
        # A schema determines where the answer ends; text that looks like a stop string may be part of a value.
        stop = () if generation.json_schema is not None else generation.stop
        tool_format = family.tool_format
        marks = special_marks(family.tokenizer, tool_format.marks) if tools else {}
        return [
            RunningSequence(
                prompt,
                plan,
                min(generation.max_tokens, room_for_answer(prompt, plan, positions, family.decoder)),
                family.eos_token_ids,
                TextStream(family.tokenizer, stop, tool_format.begin if tools else None, prompt.continued, marks),
                state,
                TextStream(family.tokenizer),
                CallReader(prompt.continues, tool_format, tools) if tools else None,
            )
            for prompt, plan, state in zip(self._prompts, groups, self._reasoning_states(), strict=True)
        ]

    def constraint(self, limits: Sequence[int]) -> Constraint | None:
        """Return the constraint that the answers follow, None without functions and schema.

        Parameters
        ----------
        limits : the number of tokens of each answer at most.

        Raises
        ------
        TopsError
            If the grammar cannot be followed.
        """
        tokenizer, generation, tools = self._family.tokenizer, self._generation, self._tools
        if tools is not None:
            grammar = tool_grammar(tools, tokenizer, generation.json_schema, self._family.tool_format)
        elif generation.json_schema is not None:
            grammar = json_grammar(generation.json_schema)
        else:
            return None
        states = self._reasoning_states()
        if not writes_marks(self._family.chat_template) or generation.thinking == "off":
            # A model that does not think follows the grammar from its first token on.
            for state in states:
                state.may_begin = False
        is_json = tools is None or self._family.tool_format.is_json
        return Constraint(grammar, tokenizer, self._family.eos_token_ids, limits, states, is_json)

    def reasoning_budget(self) -> ReasoningBudget | None:
        """Return what bounds the reasoning, None if no number of tokens was given."""
        if not isinstance(self._generation.thinking, int):
            return None
        return ReasoningBudget(self._reasoning_states(), self._generation.thinking)

    def _reasoning_states(self) -> list[ReasoningState]:
        """Return where each answer stands at its beginning."""
        states = [ReasoningState(self._reasoning_tokens, prompt.input_ids) for prompt in self._prompts]
        for state, prompt in zip(states, self._prompts, strict=True):
            # What continues a text of the answer is answer.
            state.may_begin = state.may_begin and not prompt.continues
        return states
