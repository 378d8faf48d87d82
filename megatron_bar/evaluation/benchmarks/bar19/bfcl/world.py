"""What the sandbox runs for a conversation of BFCL (turns.py); nobody imports it.

Standard input: JSON with sources (of BFCL's classes, and perhaps of long_context), classes, config, is_long,
turns (of steps, of calls as [name, arguments]) and perhaps truth (of each turn, its calls as Python). Every
step's results are printed as a line of JSON as soon as they are there; with a truth, a last line says whether
each turn left the truth's state and gave its results. Status BROKEN: the calls left what cannot be compared,
or no memory to say it.
"""

import builtins
import copy
import decimal
import inspect
import json
import sys

BROKEN = 200


class Number:
    """The little that BFCL's MathAPI wants of mpmath: quotients of logarithms of a given precision."""

    dps = 15

    def __init__(self, value):
        self.value = value

    def __truediv__(self, other):
        with decimal.localcontext(prec=Number.dps):
            return Number(self.value / other.value)

    def __repr__(self):
        return f"mpf('{self.value}')"


def log(value):
    with decimal.localcontext(prec=Number.dps):
        return Number(decimal.Decimal(value).ln())


def stand_in(name, **content):
    module = type(sys)(name)
    vars(module).update(content)
    return module


def loaded(sources, names):
    """Returns BFCL's classes. ``long_context`` gives only what long conversations are filled with."""
    mpmath = stand_in("mpmath", mp=Number, log=log)
    long_context = stand_in("long_context", __getattr__=lambda name: "")
    if "long_context" in sources:
        long_context = stand_in("long_context")
        exec(sources["long_context"], vars(long_context))  # noqa: S102  BFCL's text, in the sandbox

    def importing(name, *rest):
        others = {"long_context": long_context, "mpmath": mpmath, "subprocess": stand_in(name)}
        found = others.get(name.rpartition(".")[2])
        return found or builtins.__import__(name, *rest)

    classes = {}
    for name in names:
        allowed = {**vars(builtins), "__import__": importing}
        module = stand_in(name, __builtins__=allowed)
        sys.modules[name] = module
        exec(sources[name], vars(module))  # noqa: S102  BFCL's text, in the sandbox
        classes[name] = vars(module)[name]
    return classes


class World:
    """One instance of each class, as the conversation's configuration sets it up."""

    def __init__(self, classes, config, is_long):
        self.instances = {name: made() for name, made in classes.items()}
        self.methods = {}
        for name, instance in self.instances.items():
            if hasattr(instance, "_load_scenario"):
                instance._load_scenario(copy.deepcopy(config.get(name, {})), long_context=is_long)
            for method, bound in inspect.getmembers(instance, predicate=inspect.ismethod):
                if not method.startswith("_"):
                    self.methods[method] = with_own_defaults(bound)

    def call(self, name, arguments):
        return self.result(lambda: self.method(name)(**arguments))

    def evaluate(self, text):
        return self.result(lambda: eval(text, dict(self.methods)))  # noqa: S307  the truth, in the sandbox

    def method(self, name):
        if name not in self.methods:
            raise NameError(f"name '{name.partition('.')[0]}' is not defined")
        return self.methods[name]

    def result(self, call):
        """Returns what BFCL shows of a call's result."""
        try:
            value = call()
            try:
                text = json.dumps(value) if isinstance(value, dict) else str(value)
            except (TypeError, ValueError):
                text = str(value)
        except Exception as error:  # noqa: BLE001  a call may raise anything, and its text is the result
            text = f"Error during execution: {error}"
        return text.encode("utf-8", "replace").decode()  # half of a pair of surrogates is no text for a model

    def equals(self, other):
        return all(self._same(name, instance) for name, instance in other.instances.items())

    def _same(self, name, other):
        mine = vars(self.instances[name])
        return all(
            key.startswith("_") or (key in mine and not mine[key] != value)  # as BFCL asks
            for key, value in vars(other).items()
        )


def with_own_defaults(method):
    """Returns ``method`` with defaults that are each call's own: else a list among them is one for all calls,
    the truth's too, and what is put into it stands in both states."""
    defaults = method.__func__.__defaults__

    def called(*args, **kwargs):
        method.__func__.__defaults__ = copy.deepcopy(defaults)
        return method(*args, **kwargs)

    return called


def holds(results, wanted):
    """Returns whether all ``wanted`` are among ``results``, each as often."""
    left = list(results)
    for result in wanted:
        if result not in left:
            return False
        left.remove(result)
    return True


def main(task):
    told = sys.stdout
    sys.stdout = sys.stderr  # what BFCL's classes print is no result
    classes = loaded(task["sources"], task["classes"])
    world = World(classes, task["config"], task["is_long"])
    truth = World(classes, task["config"], task["is_long"]) if "truth" in task else None
    try:
        for line in lines(task, world, truth):
            print(json.dumps(line), file=told, flush=True)
    except Exception:  # noqa: BLE001  the classes run: what fails now is what the calls made of them
        sys.exit(BROKEN)


def lines(task, world, truth):
    """Yields what is printed."""
    results = []
    reason = ""
    for number, steps in enumerate(task["turns"]):
        for calls in steps:
            new = [world.call(name, arguments) for name, arguments in calls]
            yield {"results": new}
            results += new
        if truth is None or reason:
            continue
        wanted = [truth.evaluate(text) for text in task["truth"][number]]
        if not wanted:
            continue  # a turn in which nothing can be done yet: whatever was called shows in the next state
        if not steps:
            reason = f"turn {number}: no call"
        elif not world.equals(truth):
            reason = f"turn {number}: another state"
        elif not holds(results, wanted):
            reason = f"turn {number}: a result is missing"
    yield {"right": not reason, "reason": reason}


if __name__ == "__main__":
    main(json.load(sys.stdin))
