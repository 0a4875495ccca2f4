"""Trains the demo models of wanpipe/demo, in a quarter of an hour on one CUDA GPU.

Run from the root of the repository. Needs PyTorch, NumPy, tokenizers and safetensors:

    C=wanpipe/demo/checkpoints; T="python -m bench.train_demo"
    $T.data --out run/data.npz --tokenizer $C/t2v/google/umt5-xxl/tokenizer.json    # 15 s, CPU
    $T.train_vae --data run/data.npz --out run/vae --seconds 320
    $T.train_dit --data run/data.npz --vae run/vae/Wan2.1_VAE.pth --out run/dit \\
        --stages t2v:370 small:80 --models t2v small
    $T.train_dit --data run/data.npz --vae run/vae/Wan2.1_VAE.pth --out run/dit --first 0.4 \\
        --stages small+:60 high:42 low:45 i2v-high:46 i2v-low:60 outline:28
    $T.export --run run/dit --vae run/vae/Wan2.1_VAE.pth --checkpoints $C
    $T.evaluate --checkpoints $C

Each program trains for the given number of seconds, and reads and writes files. Training can be
continued (`--resume` of train_vae, `t2v+` and `small+` of train_dit). Seeds are fixed, but the
number of steps depends on the clock, so two runs differ slightly.

On one H100 (PyTorch 2.11): 10141 steps of the VAE at 32 ms, 23181 steps of T5 and transformer at
16 ms, about 8 ms per step for the smaller experts. `world` draws clips and captions, `data` is the
training set, `vae_net` and `wan_net` are the networks with the official key names, `fused` is a
kernel of the VAE, `optim` has Muon and AdamW, `flow` the loss. `sampler`, `judge` and `evaluate`
measure the result.
"""
