"""Trains the demo models of wanpipe/demo, in under an hour on one CUDA GPU.

Run from the root of the repository. Needs PyTorch, NumPy, tokenizers and safetensors:

    C=wanpipe/demo/checkpoints; T="python -m bench.train_demo"
    $T.data --out run/data.npz --tokenizer $C/t2v/google/umt5-xxl/tokenizer.json    # 15 s, CPU
    $T.train_vae --data run/data.npz --out run/vae --seconds 320
    $T.train_dit --data run/data.npz --vae run/vae/Wan2.1_VAE.pth --out run/dit \\
        --stages t2v:370 small:80 --models t2v small
    $T.train_dit --data run/data.npz --vae run/vae/Wan2.1_VAE.pth --out run/dit --first 0.4 \\
        --stages small+:60 high:42 low:45 i2v-high:46 i2v-low:60 outline:28
    $T.train_dit --data run/data.npz --vae run/vae/Wan2.1_VAE.pth --out run/dit --models \
        --stages i2v-high+:125 i2v-low+:530 vace:705 --few 98304 --pool-seconds 110
    $T.export --run run/dit --vae run/vae/Wan2.1_VAE.pth --checkpoints $C
    $T.evaluate --checkpoints $C
    $T.evaluate_tasks --checkpoints $C

Each program trains for the given number of seconds, and reads and writes files. Training can be
continued (`--resume` of train_vae, stages with `+` of train_dit), also from the shipped weights
(`--start $C`). Seeds are fixed, but the number of steps depends on the clock, so two runs differ
slightly.

On one H100 (PyTorch 2.11): 10141 steps of the VAE at 32 ms, 23181 steps of T5 and transformer at
16 ms, about 8 ms per step for the smaller experts.

The third call of train_dit teaches image-to-video the last frame and the first 5 or 9 frames, and
trains VACE on the frozen text-to-video model. The shipped weights come from three rounds, in which
image-to-video and VACE shared the card: 70, 55 and 0 s for the expert of high noise (13822 steps),
100, 270 and 160 s for the other (34143 steps of 9 to 31 ms), 215, 325 and 165 s for VACE (25028
steps of 19 to 41 ms). Each round drew a new training set (50 to 110 s, 1.5 to 3.5 ms for an
input) and began at a high rate again (`--first` 0, 0.15, 0.25), and later rounds had more last
frames (`pools`).

`world` draws clips and captions, `data` is the training set, `vae_net` and `wan_net` are the
networks with the official key names, `fused` is a kernel of the VAE, `optim` has Muon and AdamW,
`flow` the loss. `tasks` draws and encodes what image-to-video and VACE are given, `pools` their
training sets. `sampler`, `judge` and `evaluate` measure the result; `cases` and `evaluate_tasks`
that of image-to-video and VACE.

Scores of `evaluate_tasks` with the shipped weights (UniPC, 20 steps, guidance 2, shift 5), 50
held-out prompts, or 25 where it says so. Mean and worst PSNR of given frames or kept pixels:

    image-to-video   first frame                100 % right; 35.4 dB, worst 31.1
                     first and last             100 %; 35.4 and 32.9 dB, worst 31.1 and 27.5
                     last alone                 100 %; 32.7 dB, worst 28.0
                     first 5; first 9           98 %; 94 %; no jump in any of 50
    VACE             boxes made anew            100 %; kept 34.8 to 46.7 dB, worst 30.8
                     first 5                    100 %; no jump in any of 50
                     last; middle               100 %; 30.9 dB, worst 23.4; 30.9 dB, worst 25.2
                     border made anew           100 %; kept 32.9 dB, worst 26.7
                     reference, words left out  94 %; in a moving box 96 % of 25
                     outline film               100 %; overlap 0.92, worst 0.84

What is wrong is a spinning star or triangle that breaks up, in every task. Kept pixels are at least
8 pixels from the mask (`judge.away`).
"""
