"""Hashes of what code computes, not of how it is written or where it lies.

A definition (a function, a class, a name that a module assigns) is hashed as its syntax tree:
comments, layout, docstrings and the annotations of functions are not in it, only the classes that
these name, whose methods are called on arguments. A name that another definition of this package
gives counts as the hash of that definition, however it was imported, so that moving, renaming or
reformatting a module changes nothing, and a change of anything that a definition uses, directly or
not, changes its hash. Names of other packages count as they are called; their versions are recorded
beside the hashes.

Not seen: what is reached by a computed name (`getattr` with a variable, a module found by listing
a folder). A module that is used as a value counts with all its definitions.
"""

from synergy_gym.behaviour.hashes import Behaviour
from synergy_gym.behaviour.modules import Node, Target, hashed_file, package_modules

__all__ = ["Behaviour", "Node", "Target", "hashed_file", "package_modules"]
