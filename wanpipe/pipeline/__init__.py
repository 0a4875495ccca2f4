"""What the stages share: settings, inputs, the chain of steps, memory plans and the encoders."""
