"""Evicting caches under transformers' own `generate`: for notebooks, chats and pipelines, not for the benchmark."""
