"""Chat templates: what they leave out, what they never end, whose clock they read, and their options."""

import pytest

from d2o.errors import InputError
from d2o.models import chat
from d2o.models.loading import chatting
from d2o.models.prompt import decode, encode, encode_apart
from d2o.models.random import byte_tokenizer, random_llama

PARTS = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}[end]{% endfor %}[assistant]"
)
DATED = "{{ strftime_now('%d %b %Y, %-d %B %H:%M') }} {{ messages[0].content }}"
INSIDE = "{% macro day() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}{{ day() }} {{ messages[0].content }}"
BRANCH = "{% if strftime_now is defined %}{{ strftime_now('%y') }}{% else %}none{% endif %} {{ messages[0].content }}"
SWITCH = "{{ messages[0].content }}{% if enable_thinking is defined and enable_thinking is false %}<off>{% endif %}"
CUT = "{{ messages[0].content[:3] }}"  # of a list of one part it prints that list
LOOP = (
    "{% for i in range(100000) %}{% for j in range(100000) %}{% for k in range(100000) %}{% endfor %}{% endfor %}"
    "{% endfor %}{{ messages[0].content }}"
)


def rendered(template, text="the message", options=None, **how):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return chat.render(tokenizer, [{"role": "user", "content": text}], options or {}, **how)


def test_a_template_that_wants_parts_gets_them():
    assert rendered(PARTS) == "<s>[user]the message[end][assistant]"
    loaded = random_llama(layers=1, window=200)
    loaded.tokenizer.chat_template = PARTS
    whole = decode(loaded, encode(loaded, "context. question?", 8, chat=True).ids)
    apart = encode_apart(loaded, "context.", " question?", 8, chat=True)
    assert whole == "[user]context. question?[end][assistant]" == decode(loaded, apart.ids + apart.question)
    assert apart.ids + apart.question == encode(loaded, "context. question?", 8, chat=True).ids


@pytest.mark.parametrize("template", ["{% if false %}x{% endif %}", "{{ messages[0].role }}", CUT])
def test_a_prompt_never_lacks_its_text(template):
    with pytest.raises(InputError, match="leaves a message out"):
        rendered(template)
    assert rendered("{{ messages[0].content | trim }}", " the message\n") == "the message"


def test_every_turn_is_looked_for():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who?"}]
    assert chat.render(tokenizer, turns[1:], {}) == "who?"
    with pytest.raises(InputError, match="leaves a message out"):
        chat.render(tokenizer, turns, {})


def test_the_first_error_is_told():
    with pytest.raises(InputError, match="no user turn"):
        rendered("{{ raise_exception('no user turn') }}")


def test_the_clock_stands_still():
    assert rendered(DATED) == "26 Jul 2024, 26 July 00:00 the message"
    assert rendered(INSIDE) == "2024-07-26 the message"
    assert rendered(BRANCH) == "24 the message"
    own = "{% if not date_string %}{% set date_string = strftime_now('%Y') %}{% endif %}{{ date_string }} "
    own += "{{ messages[0].content }}"
    assert rendered(own) == "2024 the message"
    assert rendered(own, options={"date_string": "1 May 1999"}) == "1 May 1999 the message"


@pytest.mark.parametrize("template", [LOOP, LOOP.replace("{% endfor %}{{", "x{% endfor %}{{")])
def test_a_template_that_does_not_end_is_stopped(template, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    with pytest.raises(InputError, match="has not ended after 0.3 seconds"):
        rendered(template)


def test_the_watch_is_taken_off_again():
    import sys

    before = sys.gettrace()
    rendered("{{ messages[0].content }}")
    assert sys.gettrace() is before


def test_a_template_that_writes_millions_is_refused():
    large = "{% for i in range(1000) %}{{ 'x' * 10000 }}{% endfor %}{{ messages[0].content }}"
    with pytest.raises(InputError, match="writes 100000.. characters"):
        rendered(large)
    assert len(rendered("{{ messages[0].content }}", "y" * 2_000_000)) == 2_000_000, "a long message is none of its"


def test_options_reach_the_template():
    loaded = random_llama(layers=1, window=200)
    loaded.tokenizer.chat_template = SWITCH
    off = chatting(loaded, {"enable_thinking": False})
    assert decode(off, encode(off, "a", 8, chat=True).ids) == "a<off>"
    assert decode(loaded, encode(loaded, "a", 8, chat=True).ids) == "a"
    part = encode_apart(off, "ab", "cd", 8, chat=True)
    assert decode(off, part.ids) == "ab" and decode(off, part.question) == "cd<off>"


@pytest.mark.parametrize(
    "options, told",
    [
        (5, "not a mapping"),
        ([1], "not a mapping"),
        ({"enable_thinkin": False}, "reads no 'enable_thinkin'"),
        ({"enable_thinking": [1]}, "not a single value"),
        ({"add_generation_prompt": False}, "no option of a template"),
        ({"messages": "x"}, "no option of a template"),
        ({1: "x"}, "no option of a template"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, told):
    loaded = random_llama(layers=1, window=200)
    loaded.tokenizer.chat_template = SWITCH
    with pytest.raises(InputError, match=told):
        chatting(loaded, options)
    loaded.tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template|not a mapping"):
        chatting(loaded, options)
    assert chatting(loaded, None).chat_options == {} == chatting(loaded, {}).chat_options
