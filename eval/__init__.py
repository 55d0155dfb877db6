"""Tasks, cells, scores and tables: what is asked of a model, kept on the disk and made of it."""
