"""Studies: many recipes that differ along axes, run and compared.

`grid.load_study` reads which runs there are, `plan.plan_study` says what they take, and `run.run_study` runs those that
are not finished and writes tables, plots and a page of all that are. Only the last one needs PyTorch.
"""
