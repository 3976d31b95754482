"""What a run will need, before it is started: memory, operations and time, without a GPU and without a weight.

`python -m ivedit.run ... --plan` prints it (`report.py`), and where memory runs out all the same, `shortage.py` says
what to change. The package's own training step and sampling are run on tensors without content (`simulate.py`,
`ledger.py`), so that a plan follows the code; only speeds and a GPU's overheads are numbers of a table (`gpus.yaml`).
"""
