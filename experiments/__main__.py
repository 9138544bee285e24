"""Train LSTMs from a config file.

python -m experiments run CONFIG [--train.steps 500 --model.units 64 ...]   train once (--help lists every option)
python -m experiments sweep CONFIG [overrides]                              train once per combination in [sweep]
python -m experiments resume RUN                                            continue a stopped or killed run
python -m experiments evaluate RUN                                          measure the newest checkpoint
python -m experiments predict RUN FILE                                      label the lines of a text file
python -m experiments report [RUN ...]                                      put finished runs into docs/results.md
python -m experiments list                                                  show configs/ and runs/

--mesh.data N --mesh.model M divide a batch, and the units of LSTMs, over devices; resume takes other ones too.
--data-changed, of resume and evaluate, accepts other data than the run began with.
--distributed, of run, sweep and resume, makes this one of several processes that train together: docs/scale.md.
"""

import sys

from experiments import commands, mesh, report
from experiments.config import ConfigError
from experiments.runs import RunError

FLAGS = {"--distributed": ("run", "sweep", "resume"), "--data-changed": ("resume", "evaluate")}


def main(argv: list[str]) -> int:
    try:
        given = {flag for flag in FLAGS if flag in argv}
        argv = [word for word in argv if word not in FLAGS]
        for flag in given:
            if not {*argv[:1]} & {*FLAGS[flag]}:
                *some, last = FLAGS[flag]
                raise ConfigError(f"{flag} is of {', '.join(some)} and {last}, not of {''.join(argv[:1]) or 'nothing'}")
        changed = "--data-changed" in given
        if "--distributed" in given:
            _join()
        match argv:
            case ["run", config, *overrides] if not config.startswith("-"):
                return commands.run(config, overrides)
            case ["sweep", config, *overrides] if not config.startswith("-"):
                return commands.sweep(config, overrides)
            case ["resume", run, *overrides] if not run.startswith("-"):
                return commands.resume(run, overrides, changed)
            case ["evaluate", run] if not run.startswith("-"):
                return commands.evaluate(run, changed)
            case ["predict", run, file] if not run.startswith("-"):
                return commands.predict(run, file)
            case ["report", *folders] if not any(folder.startswith("-") for folder in folders):
                return commands.write_results(folders)
            case ["list"]:
                return commands.show()
            case ["-h" | "--help"]:
                print(__doc__)
                return 0
    except (ConfigError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except commands.Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt as stop:
        print(stop if stop.args else "stopped", file=sys.stderr)
        return commands.INTERRUPTED
    print(f"error: cannot read the command {' '.join(argv)!r}\n\n{__doc__}", file=sys.stderr)
    return 2


def _join() -> None:
    try:
        mesh.join()
    except ValueError as error:
        raise ConfigError(f"--distributed: {error}") from None
    report.console.quiet = not mesh.leads()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
