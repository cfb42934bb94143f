"""YAML files as plain data: nothing in them runs, and whatever is wrong is one line."""

from pathlib import Path

import yaml

from rc2l.project_files import project_config

#: More values than any config or dataset description has; aliases of aliases can stand for billions.
_MAX_VALUES = 1_000_000
_DEEPEST = 50


class YamlError(ValueError):
    """A YAML file that cannot be used; one line names the file, the place and what is wrong."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node, deep=False):
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue
                name = self.construct_object(key_node, deep=True)
                if isinstance(name, (str, int, float)):
                    if name in seen:
                        raise yaml.constructor.ConstructorError(
                            problem=f"{name!r} stands twice in one mapping", problem_mark=key_node.start_mark
                        )
                    seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> object:
    """Mappings, lists, text, numbers, booleans and dates of a YAML file.

    Raises:
        YamlError: it cannot be read, is not UTF-8 or YAML, has a key twice, contains itself, or asks for code to run.
    """
    try:
        written = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise YamlError(f"{path}: cannot be read ({getattr(error, 'strerror', '') or error})") from error
    return parse_yaml(written, str(path))


def parse_yaml(written: str, path: str) -> object:
    """What :func:`read_yaml` gives, from text; ``path`` says in errors where the text is from."""
    try:
        content = yaml.load(written, Loader=_Loader)
        _measure(content, path)
    except RecursionError as error:
        raise YamlError(f"{path}: it is nested too deeply, or contains itself") from error
    except yaml.constructor.ConstructorError as error:
        raise YamlError(_described(path, error)) from error
    except yaml.YAMLError as error:
        reason = _described(path, error).removeprefix(f"{path}:").strip()
        raise YamlError(f"{path}: this is no YAML file ({reason}); correct it") from error
    except (ValueError, OverflowError, TypeError) as error:  # a date such as 2026-99-99; a number that is too long
        if isinstance(error, YamlError):
            raise
        raise YamlError(f"{path}: {' '.join(str(error).split())}") from error
    return content


def read_yaml_mapping(path: Path) -> dict:
    """A YAML file that is one mapping, with names as keys.

    Raises:
        YamlError: as :func:`read_yaml`; or it is empty, or no mapping.
    """
    return _mapping(read_yaml(path), str(path))


def parse_yaml_mapping(written: object, path: str) -> dict:
    """What :func:`read_yaml_mapping` gives, from text."""
    if not isinstance(written, str):
        raise YamlError(f"{path}: it is no text but a {type(written).__name__}")
    return _mapping(parse_yaml(written, path), path)


def _mapping(content: object, path: str) -> dict:
    if content is None:
        raise YamlError(f"{path}: the file is empty; it must hold KEY: value lines")
    if not isinstance(content, dict):
        raise YamlError(f"{path}: it holds a {type(content).__name__}; it must hold KEY: value lines")
    return content


def read_yaml_with_bases(path: Path) -> dict:
    """A config file merged over the files that its ``_BASE_`` names, as detectron2 does it: one path or a list of
    paths, relative to the file, later ones over earlier ones. ``configs/...`` that is not there is the project's own.

    Raises:
        YamlError: as :func:`read_yaml_mapping`, for any of the files; a base is missing, no local path, or in the end
            its own base.
    """
    return _with_bases(path, ())


def _with_bases(path: Path, heirs: tuple[Path, ...]) -> dict:
    resolved = path.resolve()
    if resolved in heirs:
        chain = " -> ".join(map(str, [*heirs[heirs.index(resolved) :], resolved]))
        raise YamlError(f"{path}: its _BASE_ leads back to itself: {chain}")
    content = read_yaml_mapping(path)
    bases = content.pop("_BASE_", [])
    merged: dict = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not base.strip():
            raise YamlError(f"{path}: _BASE_ is {base!r}; it must be the path of a config file, or a list of paths")
        if "://" in base:
            raise YamlError(f"{path}: _BASE_ is {base}; it must be a local path: fetch the file and name it")
        found = path.parent / Path(base).expanduser()
        if not found.is_file():
            found = project_config(base) or found
        if not found.is_file():
            raise YamlError(f"{path}: _BASE_ is {base}, but there is no file {found}")
        _merge_into(merged, _with_bases(found, (*heirs, resolved)), path, "")
    _merge_into(merged, content, path, "")
    return merged


def _merge_into(merged: dict, content: dict, path: Path, prefix: str) -> None:
    for name, value in content.items():
        if not isinstance(name, str):
            raise YamlError(f"{path}: the key {prefix}{name} is no text but a {type(name).__name__}")
        if isinstance(value, dict) and name in merged:
            if not isinstance(merged[name], dict):
                raise YamlError(f"{path}: {prefix}{name} is a mapping, but a value in its _BASE_")
            _merge_into(merged[name], value, path, f"{prefix}{name}.")
        elif isinstance(value, dict):
            merged[name] = {}
            _merge_into(merged[name], value, path, f"{prefix}{name}.")
        else:
            merged[name] = value


def _measure(content: object, path: str) -> None:
    """Refuse what has too many values, or contains itself."""
    values, left = 0, [(content, 0)]
    while left:
        value, depth = left.pop()
        values += 1
        if values > _MAX_VALUES or depth > _DEEPEST:
            raise YamlError(f"{path}: it contains itself, or aliases that make it too large")
        if isinstance(value, dict):
            left += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, (list, tuple, set)):
            left += [(item, depth + 1) for item in value]


def _described(path: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    tag = "could not determine a constructor for the tag "
    if problem.startswith(tag):
        problem = (
            f"the tag {problem.removeprefix(tag)} asks for an object, which could run code; plain values only are read"
        )
    line = f" line {mark.line + 1}:" if mark else ""
    return f"{path}:{line} {problem}"
