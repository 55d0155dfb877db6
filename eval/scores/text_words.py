"""Texts to words, for the metrics: English answers without articles and punctuation, Chinese by jieba."""

from __future__ import annotations

import functools
import logging
import re
import string
import warnings
from types import ModuleType

from d2o.errors import InputError

PUNCTUATION_ZH = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
DROP = str.maketrans("", "", string.punctuation)
DROP_ZH = str.maketrans("", "", string.punctuation + PUNCTUATION_ZH)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def words_en(text: str) -> list[str]:
    """Lower case, punctuation removed, then articles removed, split at white space."""
    return ARTICLES.sub(" ", text.lower().translate(DROP)).split()


def words_zh(text: str) -> list[str]:
    """jieba's words, each lower case without punctuation and white space; those left empty are dropped."""
    cleaned = ("".join(word.lower().translate(DROP_ZH).split()) for word in cut(text))
    return [word for word in cleaned if word]


@functools.lru_cache(maxsize=4096)
def cut(text: str) -> tuple[str, ...]:
    """jieba's words, white space and punctuation included: their concatenation is the text."""
    return tuple(_tokenizer().cut(text, cut_all=False))


@functools.cache
def _tokenizer():
    # A tokenizer of our own: words that other code adds to jieba's global one must not change a score.
    jieba = need("jieba")
    jieba.setLogLevel(logging.ERROR)
    return jieba.Tokenizer()


def need(name: str) -> ModuleType:
    """Import a package that only some metrics need; InputError with the remedy where it is missing."""
    import importlib

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"this metric needs the package {name}: {error}", "pip install -r requirements.txt") from error
