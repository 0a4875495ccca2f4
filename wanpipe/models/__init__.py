"""The networks in plain MLX, their configs, and the sizes that they accept.

Shapes use one alphabet: B batch, C channels; F, H, W latent frames, rows and columns; T, Y, X
frames, rows and columns of pixels; L tokens, N heads, D width. In addition, G counts groups of
tokens that share a timestep, O and I are the output and input features of a weight.
"""
