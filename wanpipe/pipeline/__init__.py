"""What stages share: plans, inputs, memory plans, encoders and frames."""
