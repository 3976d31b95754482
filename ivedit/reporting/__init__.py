"""Tables, plots and pages made from the records of runs and sweeps."""
