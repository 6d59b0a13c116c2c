"""How a sequence runs: one coroutine from prompt to answer, many in one forward."""
