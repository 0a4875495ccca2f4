"""Code that stages share: plans, inputs, memory plans, encoders and frames."""
