"""Send runs to Weights & Biases, MLflow or Trackio while they train.

A separate process follows the run directories. Training does not depend on it and shares no random generator
with it, and all engines are tracked alike. ``tracking.json`` in each run directory records what was sent, so
that a resumed run continues its tracked run, and a rerun command sends the missing part.
"""
