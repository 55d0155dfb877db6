"""Methods over another one: they change what its scores or its slots come to, `method.base=` names it."""
