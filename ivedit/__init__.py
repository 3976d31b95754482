"""ivedit: learn video editing from image pairs, with a frozen text-to-video transformer.

Importing this package loads nothing heavy; see ``python -m ivedit.run --help``.
"""

__version__ = "0.1.0"
