"""A model's chat template: a program of the model's authors, run within bounds, whose text is looked at before use.

The clock that a template reads stands still at CLOCK, so that the rows of a cell, and a cell that is resumed on another
day, get the same prompt; a date of one's own is an option of most templates (`date_string`).
"""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from d2o.errors import InputError

CLOCK = datetime(2024, 7, 26)  # what Llama 3's own template says where it is given no clock
SECONDS = 10.0  # a template takes milliseconds
LARGEST = 1_000_000  # characters that a template may put around its messages
Messages = Sequence[Mapping[str, Any]]
_DIRECTIVES = [*"aAbBcdfGHIjmMpSuUVwWxXyYZz", "-d", "-m", "-H", "-I", "-M", "-S", "-j", "e", "F", "T", "D", "R"]
_MEND = "mend the tokenizer's chat template"


class _Late(Exception):
    """The template has had its time."""


def render(tokenizer: Any, messages: Messages, options: Mapping[str, Any], answer: bool = True) -> str:
    """The messages, {"role", "content"} with a text as content, as the tokenizer's chat template writes them.

    answer: an assistant's turn is opened behind them; else the last of them is left open, to be gone on with.
    A template that leaves the texts out is given each as a list of parts, [{"type": "text", "text": ...}], too. Raises
    InputError for a template that fails, does not end, writes too much, or holds a message in neither form.
    """
    refused = None
    for shaped in (messages, [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]):
        try:
            text = _rendered(tokenizer, shaped, options, answer)
        except InputError as error:
            if isinstance(error.__cause__, _Late):
                raise
            refused = refused or error
            continue
        if len(text) > LARGEST + sum(len(one["content"]) for one in messages):
            raise InputError(f"the chat template writes {len(text)} characters around its messages", _MEND)
        printed = any(str(one["content"]) in text for one in shaped if shaped is not messages)  # the list itself
        if not printed and all(one["content"].strip() in text for one in messages):  # many templates strip a text
            return text
    raise refused or InputError("the chat template leaves a message out", _MEND)


def checked_options(tokenizer: Any, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options for a chat template. Raises InputError for one that no template reads, or that would take the place of
    what is passed to it anyway, and for a value that is not a number, a text, true, false or null."""
    options, hint = options if options is not None else {}, "write 'model.chat_options={enable_thinking: false}'"
    if not isinstance(options, Mapping):
        raise InputError(f"model.chat_options={options} is not a mapping", hint)
    if options and not tokenizer.chat_template:
        raise InputError("model.chat_options is given, and the tokenizer has no chat template", "leave it out")
    templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else str(tokenizer.chat_template)
    taken = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages", "return_dict"}
    for name, value in options.items():
        if not isinstance(name, str) or name in taken:
            raise InputError(f"model.chat_options.{name} is no option of a template", hint)
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise InputError(f"model.chat_options.{name}={value} is not a single value", hint)
        if not re.search(rf"\b{re.escape(name)}\b", templates):
            raise InputError(f"the chat template reads no {name!r}", "look into the tokenizer's chat template")
    return dict(options)


def _rendered(tokenizer: Any, messages: Messages, options: Mapping[str, Any], answer: bool) -> str:
    how = {"add_generation_prompt": answer, "continue_final_message": not answer, "tokenize": False, **options}
    try:
        with _within(SECONDS):
            template = tokenizer.get_chat_template()
            if "strftime_now" in template:
                how["chat_template"] = _stopped_clock() + template
            return tokenizer.apply_chat_template([dict(one) for one in messages], **how)
    except _Late as error:
        raise InputError(f"the chat template has not ended after {SECONDS:g} seconds", _MEND) from error
    except Exception as error:  # a template may raise anything
        said = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".: ")
        raise InputError(f"the chat template fails: {said}", _MEND) from error


def _stopped_clock() -> str:
    """A macro in place of transformers' strftime_now: a template is given plain data, and so no function."""
    steps = "".join(f"|replace('%{name}','{CLOCK.strftime('%' + name)}')" for name in _DIRECTIVES)
    return "{%- macro strftime_now(format) -%}{{ format" + steps + " }}{%- endmacro -%}"


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises _Late in whatever Python code runs for longer: at the call of a function, and at every line of a
    template, whose loops may call none."""
    end = time.monotonic() + seconds

    def watch(frame: Any, event: str, arg: Any) -> Any:
        if time.monotonic() > end:
            raise _Late
        return watch if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
