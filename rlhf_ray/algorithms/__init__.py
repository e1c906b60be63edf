"""Advantages, losses and penalties as pure functions of tensors, one idea per file.

Conventions shared by every function (the table is in docs/algorithms.md):

- Per-token tensors are flat and ragged: `[N]` with `lengths [S]`, prompt and response of
  every sample one after the other. `mask [N]` is True on the tokens that the policy sampled.
- Losses on preferences have one entry per pair `[P]` or per answer `[S]`; their mask is False on
  padding.
- Entries off the mask are never read: whatever stands there, NaN included, adds exactly 0 to
  every result and to every gradient.
- No function knows a configuration object, a device or a process group.
"""
