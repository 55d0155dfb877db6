"""Several questions on one compressed cache: what a later one finds is what the earlier ones have left.

The conversation goes on with what should have been said, not with what was: every method reads the same text, and a
wrong answer costs one turn. So each answer is given by a copy of the cache, and the cache itself reads the right one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from d2o.engine.engine import Engine
from d2o.engine.generation import Ids, read_prompts
from d2o.engine.replies import Asked, Generation, answers
from d2o.engine.sampling import Draws
from d2o.errors import InputError

Wanted = Collection[int] | Mapping[int, Draws | None]


@torch.inference_mode()
def converse(
    engine: Engine, opening: Ids, question: Ids, later: Sequence[Ids], wanted: Wanted, asked: Asked
) -> dict[int, Generation]:
    """The answers to the turns `wanted`, counted from 0; a mapping says how each of them is drawn.

    `opening`, `question`: as a prompt and its question of `generate`; `later[k]`: what is fed for turn k + 1, the right
    answer to turn k and the next question. Seconds of turn 0 are those of the opening. Raises InputError for a text
    that grows over the length at which the model's rotation changes.
    """
    total = len(opening) + len(question) + sum(map(len, later)) + asked.most
    if engine.is_far(len(opening)) != engine.is_far(total):
        what = f"a conversation of {total} tokens grows over the length at which the model's rotation changes"
        raise InputError(what, "take shorter texts, or another model")
    draws = wanted if isinstance(wanted, Mapping) else {}
    found: dict[int, Generation] = {}
    began = engine.clock()
    cache, logits = read_prompts(engine, [opening], [question], asked)
    for turn, fed in enumerate([(), *later]):
        if turn:
            began = engine.clock()
            cache.begin_turn(len(fed))
            logits = engine.extend(cache, torch.tensor([list(fed)], device=engine.device))[:, -1]
        if turn in wanted:
            read, mine = engine.clock(), replace(asked, draws=draws.get(turn))
            (found[turn],) = answers(engine, cache.fork(), logits, mine, read - began)
    return found
