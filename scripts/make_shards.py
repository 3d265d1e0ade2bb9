"""`pretrain shards`, from a checkout."""

from pretrain.cli.make_shards import Arguments, __doc__, main
from pretrain.config.arguments import script

if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)
