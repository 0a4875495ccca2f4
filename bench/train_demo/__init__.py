"""How the tiny Wan of wanpipe/demo was made: PyTorch, one CUDA GPU, a quarter of an hour.

Run from the root of the repository, with PyTorch, NumPy, tokenizers and safetensors installed:

    C=wanpipe/demo/checkpoints; T="python -m bench.train_demo"
    $T.data --out run/data.npz --tokenizer $C/t2v/google/umt5-xxl/tokenizer.json    # 15 s, CPU
    $T.train_vae --data run/data.npz --out run/vae --seconds 320
    $T.train_dit --data run/data.npz --vae run/vae/Wan2.1_VAE.pth --out run/dit \\
        --stages t2v:370 small:80 --models t2v small
    $T.train_dit --data run/data.npz --vae run/vae/Wan2.1_VAE.pth --out run/dit --first 0.4 \\
        --stages small+:60 high:42 low:45 i2v-high:46 i2v-low:60 outline:28
    $T.export --run run/dit --vae run/vae/Wan2.1_VAE.pth --checkpoints $C
    $T.evaluate --checkpoints $C

Each run is boxed by the seconds that it is given, starts from files and leaves files; any of them
can be cut in two (`--resume` of train_vae, `t2v+` and `small+` of train_dit). Seeds are fixed,
but a clock decides the number of steps, so that two runs differ a little.

On one H100 (PyTorch 2.11): 10141 steps of the VAE at 32 ms, 23181 of T5 and transformer at
16 ms, about 8 ms a step for the smaller experts. `data` is the training set, `fused` a kernel of
the VAE, `vae_net` and `wan_net` the networks with the official key names, `optim` Muon and AdamW
by the clock, `flow` the loss, `sampler` and `evaluate` what the result is measured with.
"""
