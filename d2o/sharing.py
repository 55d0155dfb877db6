"""Which methods read a prompt alike, found by what their classes override."""

from __future__ import annotations

# What a class may override and still read a prompt as every method does, since it is about what is remembered, cut and
# done afterwards. Whatever is not named here keeps a method apart, which is always right.
LATER = {"observe", "written", "allocate", "recent", "importance", "absorb", "early", "arm", "compress", "capacity",
         "follow", "attention_keys", "row_bytes", "_victim"}  # fmt: skip


def reads_alike(kind: type, base: type) -> bool:
    """Whether `kind` leaves all code of `base` as it is but what LATER names."""
    own = {name for one in kind.__mro__ if one not in base.__mro__ for name in vars(one) if not name.startswith("__")}
    return {name for name in own if _is_code(getattr(base, name, None))} <= LATER


def _is_code(member: object) -> bool:
    return callable(member) or isinstance(member, property)
