"""One forward pass after the other over an evicting cache: opened, prefilled, stepped, made to answer."""
