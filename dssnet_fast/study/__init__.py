"""The paper's studies, and one of the recipe: grids of training runs, compared.

`grids.py` says what is compared, `budget.py` how long each is trained, `runs.py` trains and scores,
`results.py` and `figure.py` tell what came out. `__main__.py` is the command.
"""
