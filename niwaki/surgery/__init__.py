"""Carrying a plan out: ``cut`` makes the smaller module, ``shrink`` makes the same module smaller, ``zero`` makes the
reference it must agree with; ``history`` knows which plan a module was cut by. Imports core, trace and program."""
