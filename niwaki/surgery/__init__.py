"""Carrying a plan out: ``cut`` makes the smaller module, ``zero`` the reference it must agree with, ``fold`` keeps
constants of removed units, ``plans`` remembers which plan a module was cut by. Imports core and program."""
