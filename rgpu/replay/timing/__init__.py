"""Time of a replay on a virtual clock: decisions come from a `DecisionLog`, hardware from a `Machine`. All simulated."""
