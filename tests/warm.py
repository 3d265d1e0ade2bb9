"""Done once for all programs that are forked: one composition, which finds Hydra's plugins and keeps the defaults."""

from pretrain.config.check import judged

judged(["+experiment=mae_digits", "trainer=cpu"])
