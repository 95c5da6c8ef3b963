"""Runs the mutants of mutants/*.mutants. scripts/mutants says how to use it."""

import fcntl
import fnmatch
import glob
import os
import re
import subprocess
import sys
import tempfile
import time

ROOT = os.getcwd()
DIR = os.environ.get("MUTANTS_DIR") or os.path.join(tempfile.gettempdir(), "uringlog-mutants")
TREE = os.path.join(DIR, "tree")
LIMIT_S = int(os.environ.get("MUTANTS_LIMIT_S", "90"))
SIM_S = int(os.environ.get("MUTANTS_SIM_S", "60"))

# Little optimization of the library, since it is built often.
QUICK = ["--config", "profile.test.opt-level=0", "--config", "profile.test.debug=false",
         "--config", "profile.test.incremental=true", "--config", 'profile.test.package."*".opt-level=2']
LOOM = ["--release", "--config", "profile.release.debug=false",
        "--config", "profile.release.incremental=true",
        "--config", "profile.release.package.uringlog.opt-level=1"]

# Goes into the copy of src/lib.rs: which mutant counts.
SWITCH = """
pub(crate) fn mutated(number: u32) -> bool {
    static WHICH: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let which = || std::env::var("MUTANT").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    *WHICH.get_or_init(which) == number
}
"""


def stop(words):
    print(words, file=sys.stderr)
    sys.exit(2)


# ---- the table ----

class Mutant:
    def __init__(self, name, number):
        self.name, self.number = name, number
        self.breaks = self.guarantee = ""
        self.tests = []   # [target, filter...]
        self.edits = []   # (file, old, new)


def read_tables():
    mutants = {}
    for path in sorted(glob.glob("mutants/*.mutants")):
        mutant = file = part = None
        for at, line in enumerate(open(path).read().split("\n"), 1):
            if part == "old" and line == "=======":
                part = "new"
            elif part == "new" and line == ">>>>>>>":
                # A text may begin and end within a line.
                mutant.edits.append((file, "\n".join(old), "\n".join(new)))
                part = None
            elif part:
                (old if part == "old" else new).append(line)
            elif line == "<<<<<<<":
                part, old, new = "old", [], []
            elif line.startswith("[["):
                mutant = Mutant(line[2:-2], len(mutants) + 1)
                if mutant.name in mutants:
                    stop(f"{path}:{at}: {mutant.name} is there twice")
                mutants[mutant.name] = mutant
            elif line.startswith("breaks: "):
                mutant.breaks = line[8:]
            elif line.startswith("guarantee: "):
                mutant.guarantee = line[11:]
            elif line.startswith("killed by: "):
                mutant.tests.append(line[11:].split())
            elif line.startswith("in: "):
                file = line[4:]
            elif line and not line.startswith("#"):
                stop(f"{path}:{at}: not understood: {line}")
        if part:
            stop(f"{path}: ends within an edit")
    return mutants


def why_not(mutant):
    """Why a mutant does not apply; None where it does."""
    if not mutant.edits or not mutant.tests:
        return "it has no edit, or no test"
    for file, old, _ in mutant.edits:
        if not os.path.exists(file):
            return f"there is no {file}"
        found = open(file).read().count(old)
        if found != 1:
            return f"{file} has {found} times: {old.strip().splitlines()[0]}"
    return None


# ---- the copy ----

def write(path, text):
    """Only where it differs: what is written is built again."""
    path = os.path.join(TREE, path)
    data = text if isinstance(text, bytes) else text.encode()
    if os.path.exists(path) and open(path, "rb").read() == data:
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "wb").write(data)


def copy_tree(changed):
    """The tree as it is, but for the files in `changed`."""
    names = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], check=True,
                           capture_output=True, text=True).stdout.split("\0")
    names = {name for name in names if name and os.path.isfile(name)}
    for name in names:
        write(name, changed.get(name) or open(name, "rb").read())
    for folder, _, files in os.walk(TREE):
        for file in files:
            path = os.path.join(folder, file)
            if os.path.relpath(path, TREE) not in names:
                os.remove(path)


def alone(mutant):
    """The changed files of one mutant."""
    changed = {}
    for file, old, new in mutant.edits:
        changed[file] = changed.get(file, open(file).read()).replace(old, new)
    return changed


# ---- all at once ----

FN = re.compile(r"^( *)(?:pub(?:\([a-z]+\))? )?(?:unsafe )?fn ")


def body_of(lines, first, last):
    """The body of the innermost function around these lines, from the indentation that rustfmt gives it:
    the lines behind its opening and before its closing brace."""
    for at in range(first, -1, -1):
        found = FN.match(lines[at])
        if not found:
            continue
        indent = found.group(1)
        opens = at
        while not (lines[opens].endswith("{") and (opens == at or re.match(f"{indent}[^ ]", lines[opens]))):
            opens += 1
        closes = opens
        while lines[closes] != indent + "}":
            closes += 1
        if opens < first and last < closes:
            return opens + 1, closes
    return None


def together(mutants):
    """The changed files with all mutants in them, the mutants that cannot be among them, and for each
    file the lines of each mutant's own copy of a body."""
    bodies, apart = {}, []
    for mutant in mutants:
        mine = {}
        for file, old, new in mutant.edits:
            text = open(file).read()
            lines, at = text.split("\n"), text.index(old)
            first = text.count("\n", 0, at)
            place = body_of(lines, first, first + old.count("\n"))
            if place is None:
                mine = None
                break
            body = mine.get((file, place)) or "\n".join(lines[place[0]:place[1]])
            if body.count(old) != 1:
                mine = None
                break
            mine[file, place] = body.replace(old, new)
        if mine is None:
            apart.append(mutant)
            continue
        for place, body in mine.items():
            bodies.setdefault(place, []).append((mutant, body))
    changed, spans = {}, {}
    for file in {file for file, _ in bodies}:
        lines, out, at = open(file).read().split("\n"), [], 0
        for _, (start, end) in sorted(place for place in bodies if place[0] == file):
            if start < at:
                stop(f"{file}: functions within functions")
            out += lines[at:start]
            for mutant, body in bodies[file, (start, end)]:
                out.append(f"if crate::mutated({mutant.number}) {{")
                spans.setdefault(file, []).append((len(out), len(out) + body.count("\n") + 1, mutant))
                out += body.split("\n") + ["} else"]
            out += ["{"] + lines[start:end] + ["}"]
            at = end
        changed[file] = "\n".join(out + lines[at:])
    changed["src/lib.rs"] = changed.get("src/lib.rs", open("src/lib.rs").read()) + SWITCH
    return changed, apart, spans


# ---- building and running ----

def build(targets):
    """Builds test targets; returns their binaries, or the compiler's words."""
    env = dict(os.environ)
    binaries = {}
    for kind in ("plain", "loom"):
        mine = [target for target in targets if (target == "loom") == (kind == "loom")]
        if not mine:
            continue
        args = ["cargo", "test", "--no-run", "-p", "uringlog", "--message-format", "short"]
        if kind == "loom":
            args += LOOM + ["--lib"]
            env["RUSTFLAGS"] = "--cfg uringlog_loom"
        else:
            args += QUICK + ["--features", "sim"]
            for target in mine:
                args += ["--lib"] if target == "lib" else ["--test", target]
        env["CARGO_TARGET_DIR"] = os.path.join(DIR, kind)
        done = subprocess.run(args, cwd=TREE, env=env, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            return None, done.stderr
        for source, binary in re.findall(r"Executable (?:unittests )?(\S+) \((.*)\)", done.stderr):
            name = "lib" if source == "src/lib.rs" else source.split("/")[1].removesuffix(".rs")
            binaries["loom" if kind == "loom" else name] = os.path.join(TREE, binary)
    return binaries, None


def run(binaries, words, number):
    """Runs tests; returns who failed (None: nobody did), and the seconds."""
    target, filters = words[0], words[1:]
    if target == "loom" and not filters:
        filters = ["models"]
    env = dict(os.environ, RUST_BACKTRACE="0", MUTANT=str(number))
    limit = SIM_S if target == "sim" else LIMIT_S
    started = time.monotonic()
    with open(os.path.join(DIR, "out"), "w+", errors="replace") as out:
        done = subprocess.run(["timeout", "-k", "5", str(limit), binaries[target], "--nocapture", *filters],
                              cwd=TREE, env=env, stdout=out, stderr=subprocess.STDOUT)
        out.seek(0)
        text = out.read()
    took = time.monotonic() - started
    code = done.returncode
    if code == 0:
        if re.search(r"^running 0 tests", text, re.M):
            stop(f"no test has such a name: {' '.join(words)}")
        return None, took
    failed = sorted(set(re.findall(r"^    ([a-z0-9_:]+)$", text, re.M)))
    if failed:
        return f"{target}: " + ", ".join(failed[:3]), took
    if code in (124, 137):
        if target == "sim":
            return None, took
        return f"{' '.join(words)} (no end in {limit} s)", took
    return f"{' '.join(words)} (ends with {code})", took


def judge(mutant, binaries, number, killing):
    took = 0.0
    for words in mutant.tests:
        killer, more = run(binaries, words, number)
        took += more
        if killer:
            killing.add(tuple(words))
            return "KILLED", killer, took
    return "SURVIVED", "", took


def tell(mutant, verdict, killer, took):
    print(f"{verdict:8} {mutant.name:32} {took:4.0f} s  {killer}\n"
          f"{'':10}breaks: {mutant.breaks}\n{'':10}guarantee: {mutant.guarantee}", flush=True)


def main():
    options = {arg for arg in sys.argv[1:] if arg.startswith("-")}
    wanted = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
    if options - {"--list", "--alone", "--keep", "--no-control"}:
        stop("see the head of scripts/mutants")
    everything = list(read_tables().values())
    mutants = [m for m in everything
               if not wanted or any(fnmatch.fnmatch(m.name, pattern) for pattern in wanted)]
    if not mutants:
        stop("no mutant has such a name; scripts/mutants --list has them")
    if "--list" in options:
        for mutant in mutants:
            tests = "; or ".join(" ".join(words) for words in mutant.tests)
            print(f"{mutant.name:32} {mutant.breaks}\n{'':34}guarantee: {mutant.guarantee}\n"
                  f"{'':34}killed by: {tests}")
            if reason := why_not(mutant):
                print(f"{'':34}DOES NOT APPLY: {reason}")
        print(f"{len(mutants)} mutants")
        sys.exit(1 if any(map(why_not, mutants)) else 0)

    os.makedirs(TREE, exist_ok=True)
    lock = open(os.path.join(DIR, "lock"), "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stop(f"another run is at work in {DIR}; set MUTANTS_DIR")
    survivors, killing = [], set()

    def note(mutant, verdict, killer, took=0.0):
        tell(mutant, verdict, killer, took)
        if verdict != "KILLED":
            survivors.append(mutant.name)

    able = []
    for mutant in mutants:
        if reason := why_not(mutant):
            note(mutant, "DOES NOT APPLY", reason)
        else:
            able.append(mutant)
    if "--keep" in options:
        copy_tree(alone(able[0]))
        print(f"{able[0].name} is in {TREE}")
        return

    # ---- together ----
    apart = list(able) if "--alone" in options else []
    # With those that were not asked for: the next run finds everything built.
    joint = [] if apart else [mutant for mutant in everything if not why_not(mutant)]
    chosen = set(able) - set(apart)
    targets = {words[0] for mutant in chosen for words in mutant.tests}
    binaries = {}
    while joint:
        changed, outside, spans = together(joint)
        apart += outside
        joint = [mutant for mutant in joint if mutant not in outside]
        copy_tree(changed)
        binaries, errors = build(targets)
        if not errors:
            break
        bad = set()
        for file, line in re.findall(r"^(\S+?):(\d+):\d+: error", errors, re.M):
            for first, last, mutant in spans.get(file, []):
                if first <= int(line) <= last:
                    bad.add(mutant)
        if not bad:
            stop(errors + "\nthe mutants do not build together")
        apart += bad
        joint = [mutant for mutant in joint if mutant not in bad]
    # The quick ones first.
    order = {"loom": 0, "lib": 1, "sim": 2}
    for mutant in sorted(joint, key=lambda mutant: order.get(mutant.tests[0][0], 3)):
        if mutant in chosen:
            note(mutant, *judge(mutant, binaries, mutant.number, killing))

    # ---- alone ----
    for mutant in [mutant for mutant in apart if mutant in able]:
        copy_tree(alone(mutant))
        own, errors = build({words[0] for words in mutant.tests})
        if errors:
            first = next((line for line in errors.splitlines() if " error" in line), errors[-200:])
            note(mutant, "DOES NOT BUILD", first)
        else:
            note(mutant, *judge(mutant, own, 0, killing))

    # ---- the tests that killed, on the code as it is ----
    wrong = []
    if "--no-control" not in options and killing:
        print("== the tests that killed, on the code as it is", flush=True)
        if any(mutant in able for mutant in apart):
            copy_tree({})
            binaries, errors = build({words[0] for words in killing})
            if errors:
                stop(errors)
        for words in sorted(killing):
            failed, took = run(binaries, words, 0)
            print(f"{'FAILS' if failed else 'passes'} {took:4.0f} s  {failed or ' '.join(words)}", flush=True)
            wrong += [failed] if failed else []
    print(f"== {len(mutants) - len(survivors)} of {len(mutants)} died")
    if survivors:
        print("did not: " + " ".join(survivors))
    if wrong:
        stop("fail without a mutant, so that their failing shows nothing: " + "; ".join(wrong))
    sys.exit(1 if survivors else 0)


main()
