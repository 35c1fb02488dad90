"""Erasing: which operators, branches, blocks and layers can vanish as a whole, and which of them together.

In reading order: ``flow`` is the record of a run as a graph, with a vertex for every operand of a join (an addition;
``stacked``: a stack that is summed; a concatenation); ``operand_tree`` says what reaches the outputs through one
operand only, and vanishes with it; ``vanishing`` and ``passing`` whether a term is zero when its weights are;
``concatenation`` and ``reading`` what reads the part of a concatenation; ``side_effects`` what else it does;
``validity`` whether outputs still follow from inputs; ``structures`` lists it all (``other_runs``); ``found_erasures``
says what a choice of them takes along, and ``erasures`` which edits a cut needs for it. In a network of modules,
``gated`` finds those that make terms without parameters, ``closing`` says which gates make what zero, ``factors`` finds
what code multiplies terms by, and ``bypasses`` layers that can be left out although no zeros do that; ``class_form``
decides what stands where modules were (``living``, ``lengths``, ``returned``, ``emptied``, ``zero_widths``) and which
numbers of layers follow (``layer_numbers``), and ``class_trial`` tries that (``trial_runs``), one module of each kind
(``stand_ins``), in the network itself (``edited``). ``routers`` looks for the experts of routers, ``expert_trial``
tries them (``expert_law``), and ``experts`` puts them beside the structures at joins.

Imports core, trace, program, rules, surgery, solve and verify.
"""
