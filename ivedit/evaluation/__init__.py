"""What an edit is worth: pixel and motion metrics, intervals over clips, and the suite that runs them.

`ivedit.evaluation.suite.evaluate` makes a run's tables and pictures, `ivedit.evaluation.quick.quick_scores` two
numbers for a pilot, `ivedit.evaluation.metrics` the metrics themselves.
"""
