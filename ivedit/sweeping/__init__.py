"""Sweeps: ablation grids and Optuna searches over runs, shared by any number of workers on any number of machines."""
