"""Orders over arrays: the rows nearest to a query, the labels that predictions contradict. Pure arithmetic.

Nothing here reads data or knows a dataset: arrays come in, and numbers of rows go out.
"""
