"""cargo-mutants' mutants of recovery, rings and writer, in one build instead of one for each.

An expression that cargo-mutants would change stands in a copy of the tree in all its ways, and an environment
variable, read once, says which counts; what cannot be changed so (constants, for one) is left to cargo-mutants.

    pip install tree-sitter tree-sitter-rust; cargo install cargo-mutants --locked
    python3 mutants/cargo_mutants.py build               the copy, and its test binaries; results of earlier
                                                         builds stay, where a mutant died
    python3 mutants/cargo_mutants.py run GROUP MINUTES   mutants that were not run yet, in random order;
                                                         GROUP: rings, recovery, writer
    python3 mutants/cargo_mutants.py report              figures, and the survivors

MUTANTS_DIR is where it works. A mutant dies by a failing, hanging or aborting test; of the simulation it sees
SIM_S seconds (12). WORKERS (2) mutants run at a time: one that hangs takes no processor.
"""

import collections
import concurrent.futures
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time

ROOT = os.getcwd()
DIR = os.environ.get("MUTANTS_DIR") or os.path.join(tempfile.gettempdir(), "uringlog-cargo-mutants")
TREE = os.path.join(DIR, "tree")
SIM_S = int(os.environ.get("SIM_S", "12"))
WORKERS = int(os.environ.get("WORKERS", "2"))
TARGETS = ["--lib", "--test", "sim", "--test", "rings", "--test", "truncate", "--test", "contract"]
QUICK = ["--config", "profile.test.opt-level=1", "--config", "profile.test.debug=false",
         "--config", 'profile.test.package."*".opt-level=2']
SWITCH = """
#[inline]
pub(crate) fn mutated(number: u32) -> bool {
    use std::sync::atomic::{AtomicU32, Ordering};
    static WHICH: AtomicU32 = AtomicU32::new(u32::MAX);
    let which = WHICH.load(Ordering::Relaxed);
    if which != u32::MAX {
        return which == number;
    }
    let which = std::env::var("MUTANT").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    WHICH.store(which, Ordering::Relaxed);
    which == number
}
"""
# What runs for a mutant, one after the other: the quick ones first, and the first that fails ends it.
SLOW = ["sectors", "generations", "thousand", "random_logs"]
QUICK_TESTS = ["ring::", "rings::", "numbers::", "drain::", "writer::", "preparer::", "follow::tests"]
PLANS = {
    "rings": [("uringlog", QUICK_TESTS, 30), ("sim", ["random_lives_1", "every_failure_1"], SIM_S),
              ("rings", [], 60), ("contract", [], 40)],
    "recovery": [("uringlog", ["recovery::", *(f"--skip={slow}" for slow in SLOW)], 30),
                 ("uringlog", [f"recovery::tests::{slow}" for slow in ["sectors", "generations", "random_logs"]]
                  + ["recovery::tests::a_thousand", "read::tests", "cursor::tests"], 60),
                 ("sim", ["random_lives_1", "damage", "every_failure_1"], SIM_S)],
    "writer": [("uringlog", QUICK_TESTS, 30), ("sim", ["random_lives_1", "every_failure_1"], SIM_S),
               ("truncate", [], 60), ("rings", [], 60), ("contract", [], 40)],
}


def path(name):
    return os.path.join(DIR, name)


def load(name, default):
    return json.load(open(path(name))) if os.path.exists(path(name)) else default


def group(file):
    if "recovery" in file:
        return "recovery"
    return "writer" if "writer" in file else "rings"


def switched(number):
    return f"crate::mutated({number + 1})"


def weave(parser, file, mutants, skipped):
    """A source file with its mutants in it."""
    src = open(file, "rb").read()
    lines = src.split(b"\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)

    def offset(place):
        before = lines[place["line"] - 1].decode()[: place["column"] - 1]
        return starts[place["line"] - 1] + len(before.encode())

    root = parser.parse(src).root_node
    wraps, inserts = collections.defaultdict(list), collections.defaultdict(str)
    for number, mutant in mutants:
        start, end = offset(mutant["span"]["start"]), offset(mutant["span"]["end"])
        node = root.descendant_for_byte_range(start, end)
        if reason := cannot(node):
            skipped[number] = reason
            continue
        genre, put = mutant["genre"], mutant["replacement"]
        if genre == "FnValue":
            inserts[start] += f"if {switched(number)} {{ return {'' if put == '()' else put}; }} "
        elif genre == "MatchArmGuard":
            if b"let " in src[start:end]:
                skipped[number] = "a guard with let"
            else:
                wraps[start, end].append((number, put))
        elif genre == "MatchArm":
            arm = enclosing(node, ("match_arm",), start, end)
            pattern = arm and arm.child_by_field_name("pattern")
            if not pattern or pattern.child_by_field_name("condition"):
                skipped[number] = "an arm with a guard"
            else:
                inserts[pattern.end_byte] += f" if !{switched(number)}"
        else:
            kinds = {"BinaryOperator": ("binary_expression", "compound_assignment_expr"),
                     "UnaryOperator": ("unary_expression",), "StructField": ("struct_expression",)}[genre]
            whole = enclosing(node, kinds, start, end)
            exact = genre != "BinaryOperator" or whole and any(
                (child.start_byte, child.end_byte) == (start, end) for child in whole.children)
            if not whole or not exact:
                skipped[number] = "within a chain of lets"
                continue
            if genre == "StructField" and src[end:end + 1] == b",":
                end += 1
            text = src[whole.start_byte:start] + put.encode() + src[end:whole.end_byte]
            wraps[whole.start_byte, whole.end_byte].append((number, text.decode()))

    def plain(start, end):
        out, at = [], start
        for place in sorted(place for place in inserts if start <= place < end):
            out += [src[at:place].decode(), inserts.pop(place)]
            at = place
        return "".join(out) + src[at:end].decode()

    def render(start, end, keys):
        out, at = [], start
        while keys:
            (first, last), inner = keys[0], []
            while len(keys) > 1 + len(inner) and keys[1 + len(inner)][0] < last:
                inner.append(keys[1 + len(inner)])
            keys = keys[1 + len(inner):]
            out += [plain(at, first), inserts.pop(first, ""), "("]
            out += [f"if {switched(number)} {{ {text} }} else " for number, text in wraps[first, last]]
            out += ["{ ", render(first, last, inner), " })"]
            at = last
        return "".join(out) + plain(at, end)

    return render(0, len(src), sorted(wraps, key=lambda key: (key[0], -key[1])))


def cannot(node):
    while node:
        if node.type in ("const_item", "static_item", "const_block", "array_type", "token_tree"):
            return "a constant"
        if node.type == "function_item":
            if any(child.type == "function_modifiers" and b"const" in child.text for child in node.children):
                return "a constant function"
            before = node.prev_sibling
            while before is not None and before.type in ("attribute_item", "line_comment"):
                if before.text == b"#[cfg(uringlog_loom)]":
                    return "under loom only"
                before = before.prev_sibling
        node = node.parent
    return None


def enclosing(node, kinds, start, end):
    while node and not (node.type in kinds and node.start_byte <= start and node.end_byte >= end):
        node = node.parent
    return node


def build():
    import tree_sitter
    import tree_sitter_rust
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_rust.language()))
    os.makedirs(TREE, exist_ok=True)
    listed = subprocess.run(["cargo", "mutants", "--list", "--json"], check=True, capture_output=True)
    mutants = json.loads(listed.stdout)
    json.dump(mutants, open(path("mutants.json"), "w"))
    # What died is dead; the others run again, against the tests as they are now.
    died = {result["name"]: result["killer"] for result in results().values() if result["killer"]}
    with open(path("results.jsonl"), "w") as out:
        for number, mutant in enumerate(mutants):
            if killer := died.get(mutant["name"]):
                out.write(json.dumps({"number": number, "name": mutant["name"], "killer": killer}) + "\n")
    names = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True)
    for name in filter(None, names.stdout.split("\0")):
        os.makedirs(os.path.dirname(os.path.join(TREE, name)), exist_ok=True)
        open(os.path.join(TREE, name), "wb").write(open(name, "rb").read())
    with open(os.path.join(TREE, "src/lib.rs"), "a") as lib:
        lib.write(SWITCH)
    by_file = collections.defaultdict(list)
    for number, mutant in enumerate(mutants):
        by_file[mutant["file"]].append((number, mutant))
    env = dict(os.environ, CARGO_TARGET_DIR=path("target"))
    unviable = set()
    while True:
        skipped = {number: "does not build" for number in unviable}
        for file, its in by_file.items():
            its = [(number, mutant) for number, mutant in its if number not in unviable]
            open(os.path.join(TREE, file), "w").write(weave(parser, file, its, skipped))
        short = ["--features", "sim", "-p", "uringlog", "--message-format", "short"]
        checked = subprocess.run(["cargo", "check", "--lib", *short], cwd=TREE, env=env, capture_output=True, text=True)
        if checked.returncode == 0:
            break
        before = len(unviable)
        for file, line, column in re.findall(r"^(src/\S+?):(\d+):(\d+): error", checked.stderr, re.M):
            text = open(os.path.join(TREE, file)).read().split("\n")
            at = int(line) - 1
            found = [m for m in re.finditer(r"mutated\((\d+)\)", text[at]) if m.start() < int(column)]
            while not found and at > 0:
                at -= 1
                found = list(re.finditer(r"mutated\((\d+)\)", text[at]))
            if found:
                unviable.add(int(found[-1].group(1)) - 1)
        if len(unviable) == before:
            sys.exit(checked.stderr)
    json.dump(skipped, open(path("skipped.json"), "w"))
    built = subprocess.run(["cargo", "test", "--no-run", *TARGETS, *QUICK, *short], cwd=TREE, env=env,
                           stderr=subprocess.PIPE, text=True)
    if built.returncode != 0:
        sys.exit(built.stderr)
    binaries = {}
    for binary in re.findall(r"Executable .*\((.*)\)", built.stderr):
        binaries[os.path.basename(binary).rsplit("-", 1)[0]] = os.path.join(TREE, binary)
    json.dump(binaries, open(path("binaries.json"), "w"))
    report()


def fails(binary, filters, limit, number):
    """Who fails first; None: nobody does."""
    env = dict(os.environ, MUTANT=str(number), RUST_BACKTRACE="0")
    tests = subprocess.Popen(["timeout", "-k", "2", str(limit), binary, *filters], cwd=TREE, env=env,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    for line in tests.stdout:
        if failed := re.search(r"^test (\S+) \.\.\. FAILED", line):
            tests.terminate()
            tests.stdout.close()
            tests.wait()
            return failed.group(1)
    code = tests.wait()
    if code == 0 or code == 124 and os.path.basename(binary).startswith("sim"):
        return None
    return "no end" if code in (124, 137) else f"ends with {code}"


def results():
    if not os.path.exists(path("results.jsonl")):
        return {}
    return {result["number"]: result for result in map(json.loads, open(path("results.jsonl")))}


def run(wanted, minutes):
    mutants, skipped, binaries = load("mutants.json", []), load("skipped.json", {}), load("binaries.json", {})
    done = results()
    for target, filters, limit in PLANS[wanted]:
        if any(group(mutants[number]["file"]) == wanted for number in done):
            break  # It passed when the first of them ran.
        if failed := fails(binaries[target], filters, 4 * limit, 0):
            sys.exit(f"fails without a mutant: {failed}")
    left = [number for number, mutant in enumerate(mutants) if group(mutant["file"]) == wanted
            and str(number) not in skipped and number not in done]
    random.shuffle(left)
    until = time.monotonic() + 60 * minutes

    def try_one(number):
        if time.monotonic() > until:
            return
        killers = (fails(binaries[target], filters, limit, number + 1) for target, filters, limit in PLANS[wanted])
        killer = next(filter(None, killers), None)
        with open(path("results.jsonl"), "a") as out:
            out.write(json.dumps({"number": number, "name": mutants[number]["name"], "killer": killer}) + "\n")
        print("killed  " if killer else "SURVIVED", mutants[number]["name"], killer or "", flush=True)

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(try_one, left))


def report():
    mutants, skipped, done = load("mutants.json", []), load("skipped.json", {}), results()
    for wanted in PLANS:
        mine = [number for number, mutant in enumerate(mutants) if group(mutant["file"]) == wanted]
        ran = [number for number in mine if number in done]
        alive = [number for number in ran if not done[number]["killer"]]
        print(f"{wanted}: {len(mine)} mutants, {sum(str(n) in skipped for n in mine)} not built here, "
              f"{len(ran)} ran, {len(ran) - len(alive)} died")
        for number in alive:
            print("  survived:", mutants[number]["name"])
    print("not built here:", dict(collections.Counter(skipped.values())))


if sys.argv[1:] == ["build"]:
    build()
elif len(sys.argv) == 4 and sys.argv[1] == "run" and sys.argv[2] in PLANS:
    run(sys.argv[2], float(sys.argv[3]))
elif sys.argv[1:] == ["report"]:
    report()
else:
    sys.exit(__doc__)
