"""Reading the `config.yaml` that a run wrote: plain data, without OmegaConf."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pretrain.config.problem import UserError

_FLOAT, _TIME = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
# YAML 1.2's floats. PyYAML reads YAML 1.1, in which a float has a point, and takes `1e-05` for text.
_FORM = re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$")


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain data, which runs nothing, with the floats and the dates (texts) of OmegaConf.

    OmegaConf writes no aliases: by them a short file could be without end, or as large as no memory is.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias, `*`")
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    sign: [(tag, form) for tag, form in resolvers if tag not in (_FLOAT, _TIME)]
    for sign, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_FLOAT, _FORM, list("-+0123456789."))


def read(path: Path) -> dict[str, Any]:
    """The nested plain data in a file that OmegaConf wrote resolved.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as failure:
        raise UserError(f"`{path}` cannot be read: {str(failure).splitlines()[0]}; a run wrote it as yaml") from None
    if not isinstance(content, dict):
        raise UserError(f"`{path}` holds no keys with values, so that no run wrote it")
    return content
