"""The showcase as an adapter class, under the name under which Snakepit starts its own."""

from __future__ import annotations

from snakepit_bridge import showcase
from snakepit_bridge.base_adapter import BaseAdapter

__all__ = ["ShowcaseAdapter"]


class ShowcaseAdapter(BaseAdapter):
    """The tools of ``snakepit_bridge.showcase``, as methods."""

    echo = staticmethod(showcase.echo)
    text_stats = staticmethod(showcase.text_stats)
    statistics = staticmethod(showcase.statistics)
    matmul = staticmethod(showcase.matmul)
    count = staticmethod(showcase.count)
    tune = staticmethod(showcase.tune)
    wait = staticmethod(showcase.wait)
    fail = staticmethod(showcase.fail)
    burn = staticmethod(showcase.burn)
    secret_length = staticmethod(showcase.secret_length)
