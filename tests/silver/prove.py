"""The proof of silver: prints one line for each claim, ends with 1 if one is false. See run.sh."""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time

import lake_e2e
from claims import claim
from stack import Stack, die_with_parent

# Groups run side by side, each in a process of its own with an emulator of its own: translating SQL is what takes the time.
GROUPS = ["chain", "windows-hard", "windows-soft", "shapes", "histories"]
# Against hanging, not against slowness: several times what they take on an idle machine.
GROUP_SECONDS = {"chain": 1200, "windows-hard": 900, "windows-soft": 900, "shapes": 600, "histories": 600, "mutants": 1800, "lake": 900}
HISTORY_SECONDS = 90  # allowed for each history beyond the defaults, on a busy machine


def windows_group(soft):
    import windows
    from generator import Generator

    with Stack() as stack, Generator() as generator:
        player = windows.Player(stack, generator, "s" if soft else "h")

        def play(steps):
            wrong = player.play(steps, soft)
            if wrong:
                raise AssertionError(wrong)

        return all(
            [claim(f"{'soft' if soft else 'hard'} delete: {name}", lambda steps=steps: play(steps)) for name, steps in windows.WINDOWS.items()]
        )


def shapes_group():
    import refusals
    import shapes
    from generator import Generator

    with Stack() as stack, Generator() as generator:
        return all([claim(check.__doc__, lambda check=check: check(stack, generator)) for check in shapes.CLAIMS + refusals.CLAIMS])


def histories_group(seeds, first):
    import histories
    from generator import Generator

    with Stack() as stack, Generator() as generator:

        def play():
            total = histories.play(stack, generator, range(first, first + seeds))
            return ", ".join(f"{count} {what}" for what, count in total.items())

        return claim(f"Random histories {first} to {first + seeds - 1}: silver is the table at every cut", play)


def chain_group():
    import chain

    with Stack() as stack:
        whole = chain.Chain(stack)
        # Each claim goes on from where the last one ended: after a false one the rest would mislead.
        for name in chain.CLAIMS:
            check = getattr(whole, name)
            if not claim(check.__doc__, check):
                return False
        return True


def mutants_group():
    import mutants
    import refusals
    import shapes
    import windows
    from bigquery import QueryFailed
    from generator import Generator

    def notices(stack, number, mutant):
        what, file, old, new, window = mutant
        with Generator(mutants.mutated(stack.scratch, number, file, old, new)) as generator:
            player = windows.Player(stack, generator, f"m{number}x")
            try:
                wrong = player.play(windows.WINDOWS[window], soft=False)
            except QueryFailed as failure:
                wrong = str(failure)  # silver lacks what is to be compared
        if not wrong:
            raise AssertionError(f"not noticed by: {window}")

    # Each in an emulator of its own: a claim's tables have the same names every time.
    def noticed_by_claim(mutant):
        what, file, old, new, name = mutant
        check = getattr(shapes, name, None) or getattr(refusals, name)
        with Stack() as stack, Generator(mutants.mutated(stack.scratch, "", file, old, new)) as generator:
            try:
                check(stack, generator)
            except (AssertionError, QueryFailed):
                return
        raise AssertionError(f"not noticed by: {name}")

    held = all([claim(f"Noticed: {mutant[0]}", lambda mutant=mutant: noticed_by_claim(mutant)) for mutant in mutants.CLAIM_MUTANTS])
    with Stack() as stack:
        return held & all(
            [
                claim(f"Noticed: {mutant[0]}", lambda number=number, mutant=mutant: notices(stack, number, mutant))
                for number, mutant in enumerate(mutants.MUTANTS)
            ]
        )


def side_by_side(groups, arguments):
    """Each group as a child of this process, two at a time; their lines as they come."""
    waiting, running, held = list(groups), {}, True

    def copy(stream):
        for line in stream:
            print(line, end="", flush=True)

    try:
        while waiting or running:
            while waiting and len(running) < max(2, (os.cpu_count() or 2) // 2):
                group = waiting.pop(0)
                print(f"begins {group}", flush=True)
                child = subprocess.Popen(
                    [
                        sys.executable,
                        __file__,
                        "--group",
                        group,
                        "--seeds",
                        str(arguments.seeds),
                        "--first",
                        str(arguments.first),
                        *(["--huella", arguments.huella] if arguments.huella else []),
                    ],
                    stdout=subprocess.PIPE,
                    text=True,
                    preexec_fn=die_with_parent,
                )
                reader = threading.Thread(target=copy, args=(child.stdout,), daemon=True)
                reader.start()
                limit = GROUP_SECONDS[group] + (HISTORY_SECONDS * arguments.seeds if group == "histories" else 0)
                running[group] = child, reader, time.monotonic() + limit
            for group, (child, reader, end) in list(running.items()):
                if child.poll() is not None:
                    reader.join()
                    held &= child.returncode == 0
                    if child.returncode not in (0, 1):
                        print(f"FALSE  {group} ended with {child.returncode}", flush=True)
                    del running[group]
                elif time.monotonic() > end:
                    print(f"FALSE  {group} took longer than its limit", flush=True)
                    held = False
                    child.terminate()
                    child.wait()
            time.sleep(0.1)
    finally:
        for child, _, _ in running.values():
            child.terminate()
            child.wait()
    return held


def main():
    parser = argparse.ArgumentParser(prog="tests/silver/run.sh", description="Proves the Dataform project on an emulator of BigQuery.")
    parser.add_argument("--seeds", type=int, default=3, help="how many random histories (about ten seconds each)")
    parser.add_argument("--first", type=int, default=0, help="the first history's seed")
    parser.add_argument("--mutants", action="store_true", help="also put faults into the generator, and see that they are noticed (two minutes more)")
    parser.add_argument(
        "--huella",
        metavar="BINARY",
        help="also prove silver through a real lake: a private PostgreSQL, and this huella's run, publish and dataform generate",
    )
    parser.add_argument("--group", choices=GROUPS + ["mutants", "lake"], help="one group only")
    arguments = parser.parse_args()
    # So that `with` and `finally` end what was started, whoever stops us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    alone = {
        "chain": chain_group,
        "windows-hard": lambda: windows_group(False),
        "windows-soft": lambda: windows_group(True),
        "shapes": shapes_group,
        "histories": lambda: histories_group(arguments.seeds, arguments.first),
        "mutants": mutants_group,
    }
    if arguments.group == "lake":
        return 0 if lake_e2e.made_lake(arguments.huella) else 1
    if arguments.group:
        return 0 if alone[arguments.group]() else 1
    start = time.monotonic()
    # The longest first, so that nothing long is left for the end.
    held = side_by_side(["mutants"] * arguments.mutants + ["lake"] * bool(arguments.huella) + GROUPS, arguments)
    print(f"{'every claim holds' if held else 'a claim is FALSE'} ({time.monotonic() - start:.0f} s)")
    return 0 if held else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
