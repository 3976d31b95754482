"""Pairs of images with an instruction: readers, the latent cache and the LightningDataModule.

Nothing heavy is imported here, so that `ivedit.data.text` (used by the backbone) and the reader registry cost
nothing until a datamodule is built.
"""
