"""`pretrain import`, from a checkout."""

from pretrain.cli.import_weights import Arguments, __doc__, main
from pretrain.config.arguments import script

if __name__ == "__main__":
    script(Arguments, __doc__ or "", main)
