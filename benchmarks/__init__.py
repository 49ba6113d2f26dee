"""Ratios against the code people would write otherwise: `python -m benchmarks [--quick]`.

Both sides of a ratio are timed in the same run, turn by turn. The median of the rounds is shown,
and a target is missed when three rounds in four, or more, are beyond it. Let nothing else run
meanwhile.

store         artifacts read by eight processes at once through the store, against reading the same
              files by hand: sha256, then safetensors; and against safetensors alone
GL            max_i M(x, y_i) of every sample, against the loop of the authors' `mscore` in numpy
              and against (a @ b.T).max(1)
sampling      the same network, equally many evaluations, against a loop over a diffusers scheduler
optimal       256 samples of the optimal denoiser of 32,768 images, and its memory
inverse       Algorithm 1 step by step against deepinv's DPS in its deterministic setting, and its
              memory; 64 reconstructions with a model of zoo/
training      images per second, same network and batch, against the loop of diffusers' example of
              unconditional training with accelerate and against plain float32; several at once
compile       images per second with torch.compile (on a GPU: CUDA graphs) against without, and how
              long compiling takes
distillation  a step against the three evaluations of its network and one backward pass that it
              cannot do without; how long the halvings from 32 steps to 1 take at that rate
"""
