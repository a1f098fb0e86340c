"""Dataclasses that cost a hook nothing: their methods are shared, not compiled for each class.

`dataclasses` writes the source of each class's methods and compiles it whenever the class is
imported: 0.45 ms a class, 20 ms a hook (`bench/`). What a hook loads takes `dataclass`, `field`,
`replace`, `fields` and `asdict` from here; for type checkers, and for who asks
`dataclasses` about one of these classes, they are dataclasses.
"""

from __future__ import annotations

from operator import attrgetter, ge, gt, le, lt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, fields, replace

    __all__ = ["asdict", "dataclass", "field", "fields", "replace"]
else:

    class _Made:
        """A default that is made anew for each value."""

        def __init__(self, make):
            self.make = make

    class _ForDataclasses:
        """What `dataclasses` looks for, made when it does."""

        def __get__(self, _, cls):
            import dataclasses

            rows = []
            for name, default in cls._defaults.items():
                made = isinstance(default, _Made)
                word = {"default_factory": default.make} if made else {"default": default}
                of = {} if default is _LACKING else word
                rows.append((name, cls.__annotations__.get(name, Any), dataclasses.field(**of)))
            cls.__dataclass_fields__ = dataclasses.make_dataclass("_", rows).__dataclass_fields__
            return cls.__dataclass_fields__

    _LACKING = object()

    def field(*, default_factory):
        """A field whose default is made by a call."""
        return _Made(default_factory)

    def fields(cls):
        """The fields of a class, with `name` and `default`, as `dataclasses` tells them."""
        return tuple(cls.__dataclass_fields__.values())

    def replace(value, /, **changes):
        """A copy with other fields."""
        return type(value)(
            **{name: getattr(value, name) for name in value.__match_args__} | changes
        )

    def asdict(value):
        """Fields by name; those of values in it likewise."""
        return {name: _plain(getattr(value, name)) for name in value.__match_args__}

    def _plain(item):
        if isinstance(item, (list, tuple)):
            return type(item)(map(_plain, item))
        if isinstance(item, dict):
            return {key: _plain(value) for key, value in item.items()}
        return asdict(item) if hasattr(type(item), "_defaults") else item

    def dataclass(*, slots=False, frozen=False, order=False):
        """As `dataclasses.dataclass`, for a class without bases."""

        def make(cls):
            names = tuple(cls.__annotations__)
            space = dict(vars(cls))
            defaults = {name: space.pop(name, _LACKING) for name in names}
            for odd in ("__dict__", "__weakref__"):
                space.pop(odd, None)
            all_of = attrgetter(*names)
            own = _common(names, all_of) | (_frozen(all_of) if frozen else {"__hash__": None})
            own |= _ordered(all_of) if order else {}
            space = own | space | {"_defaults": defaults} | ({"__slots__": names} if slots else {})
            made = type(cls)(cls.__name__, cls.__bases__, space)
            made.__init__ = _initial(made, names, defaults)
            return made

        return make

    def _initial(cls, names, defaults):
        puts = [_put(cls, name) for name in names]
        places = list(zip(names, puts, defaults.values(), strict=True))
        after = getattr(cls, "__post_init__", None)

        def __init__(self, /, *args, **given):  # noqa: N807
            for put, item in zip(puts, args, strict=False):
                put(self, item)
            for name, put, default in places[len(args) :]:
                if name in given:
                    put(self, given.pop(name))
                elif default is _LACKING:
                    raise TypeError(f"{cls.__name__} lacks {name}")
                else:
                    put(self, default.make() if isinstance(default, _Made) else default)
            if given or len(args) > len(puts):
                raise TypeError(f"{cls.__name__} has no {', '.join(given) or 'so many fields'}")
            if after is not None:
                after(self)

        return __init__

    def _put(cls, name):
        """What sets a field past that which keeps a frozen value from being changed."""
        if "__slots__" in vars(cls):
            return vars(cls)[name].__set__
        return lambda self, item: object.__setattr__(self, name, item)

    def _common(names, all_of):
        def __eq__(self, other):  # noqa: N807
            return all_of(self) == all_of(other) if type(self) is type(other) else NotImplemented

        def __repr__(self):  # noqa: N807
            texts = (f"{name}={getattr(self, name)!r}" for name in names)
            return f"{type(self).__qualname__}({', '.join(texts)})"

        def __reduce__(self):  # noqa: N807
            return type(self), tuple(getattr(self, name) for name in names)

        return {
            "__eq__": __eq__,
            "__repr__": __repr__,
            "__reduce__": __reduce__,
            "__match_args__": names,
            "__dataclass_fields__": _ForDataclasses(),
        }

    def _frozen(all_of):
        def __setattr__(_, name, __):  # noqa: N807
            raise AttributeError(f"cannot assign to field {name!r}")

        def __delattr__(_, name):  # noqa: N807
            raise AttributeError(f"cannot delete field {name!r}")

        def __hash__(self):  # noqa: N807
            return hash(all_of(self))

        return {"__setattr__": __setattr__, "__delattr__": __delattr__, "__hash__": __hash__}

    def _ordered(all_of):
        def compared(by):
            def compare(self, other):
                if type(self) is not type(other):
                    return NotImplemented
                return by(all_of(self), all_of(other))

            return compare

        return {f"__{by.__name__}__": compared(by) for by in (lt, le, gt, ge)}
