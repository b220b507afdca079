"""Has a living engine of vLLM answer for the candidates.

`serving` says which slices it answers, by what `choice` knows of the installation. `engine` starts it, has the
candidate's weights put in place, asks it, and starts it again where it died; it runs in a process of its own
(`process`), and `extension` inside of vLLM's: the recipe travels there, not the weights. `served` is lm-eval's model
class around the engine, `served_pass` a task's items that are asked of it, and `canary` tries it before a search. vLLM
takes ten seconds to import: only `served` and `canary` do, when a slice is served.
"""
