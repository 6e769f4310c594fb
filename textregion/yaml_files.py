"""YAML files of plain values, read without surprise: bounded in bytes, depth and in what aliases stand for."""

import os
from os.path import isfile
from pathlib import Path
from typing import Any

import yaml

from textregion.errors import InputError
from textregion.storage import read_text

LARGEST = 10_000_000  # bytes of a file
DEEPEST = 50  # levels of lists and mappings
MOST_NODES = 2_000_000  # values and keys
LONGEST_NUMBER = 400  # characters
OPEN = (0, 0)  # the measure of a node whose children are being measured


def read_yaml(path: str | Path, expected: str, most_nodes: int = MOST_NODES) -> Any:
    """What the one document of a YAML file holds; None when it is empty.

    expected: what the file should be, for the message. most_nodes: values and keys, every alias and merge key written
    out. Raises InputError in one line: missing, unreadable, not YAML, a key twice in a mapping, or larger than the
    bounds of this module.
    """
    if isfile(path) and os.path.getsize(path) > LARGEST:
        raise InputError(f"{path} is larger than {LARGEST // 1_000_000} MB; expected {expected}")
    text = read_text(path, expected)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, path, most_nodes, {})
        return loader.construct_document(node)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(
            f"{path} is not valid YAML (nested deeper than {DEEPEST} levels); expected {expected}"
        ) from error
    # The last four: what PyYAML raises for a tag that its value does not fit, as `!!bool maybe` or `!!timestamp now`.
    except (yaml.YAMLError, ValueError, OverflowError, AttributeError, LookupError, TypeError) as error:
        raise InputError(f"{path} is not valid YAML ({' '.join(str(error).split())}); expected {expected}") from error


def _measure(node: yaml.Node, path: str | Path, most_nodes: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many nodes and levels a node stands for; InputError beyond the bounds.

    known: the measures of nodes by identity, so that each is looked at once, however many aliases name it: a merge key
    (`<<`) of a few hundred bytes may stand for millions.
    """
    if id(node) in known:
        if known[id(node)] == OPEN:
            raise InputError(f"{path} has an alias within the very part that it names; write that part out")
        return known[id(node)]
    known[id(node)] = OPEN
    if isinstance(node, yaml.ScalarNode):
        is_number = node.tag.endswith((":int", ":float"))
        if is_number and len(node.value) > LONGEST_NUMBER:
            raise InputError(f"{path} has a number of {len(node.value)} characters, expected at most {LONGEST_NUMBER}")
    nodes, levels = 1, 1
    for child in _children(node, path):
        more, deeper = _measure(child, path, most_nodes, known)
        nodes, levels = nodes + more, max(levels, deeper + 1)
    if levels > DEEPEST:
        raise InputError(f"{path} is not valid YAML (nested deeper than {DEEPEST} levels); write it flat")
    if nodes > most_nodes:
        raise InputError(f"{path} stands for more than {most_nodes} values; use fewer aliases and merge keys")
    known[id(node)] = nodes, levels
    return nodes, levels


def _children(node: yaml.Node, path: str | Path) -> list[yaml.Node]:
    """The items of a list, the keys and values of a mapping; InputError for a key that is there twice."""
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    if len(set(keys)) < len(keys):
        twice = next(value for at, (tag, value) in enumerate(keys) if (tag, value) in keys[:at])
        raise InputError(f"{path} has the key {twice!r} twice in one mapping; leave one out")
    return [part for pair in node.value for part in pair]
