"""The table of results/README.md on faults that are survived."""

from results.tables import load, table

SYSTEMS = {"nanojepa": "nanoJEPA", "reasoner": "JEPA-Reasoner", "latent-stack": "latent stack"}


def counted(found: dict) -> str:
    """{"read": 9, "refused": 1} -> '9 read, 1 refused'."""
    return ", ".join(f"{n:,} {name}" for name, n in found.items() if name != "slowest_seconds")


def damage_of(system: str) -> dict:
    """How often each outcome, over all files of a run; the log apart, whose damaged lines are dropped."""
    total = {}
    for name, outcomes in load("reliability.json")[f"damage, {system}"].items():
        for outcome, n in outcomes.items() if not name.endswith("log.jsonl") else ():
            total[outcome] = total.get(outcome, 0) + n
    return total


def faults() -> str:
    """What was done to a run, and what came of it."""
    found = load("reliability.json")
    rows = []
    for system, name in SYSTEMS.items():
        if (killed := found.get(f"kills, {system}")) is None:
            continue
        came = f"{killed['bit_equal']} of {killed['trainings']} trainings ended bit-equal to an unbroken one"
        rows.append([f"{name}: killed at random moments", f"{killed['kills']} kills", came])
    for system in (system for system in SYSTEMS if f"damage, {system}" in found):
        outcomes = damage_of(system)
        damages = f"{sum(outcomes.values())} damages"
        rows.append([f"{SYSTEMS[system]}: bytes flipped, cut off, inserted", damages, counted(outcomes)])
    tried = sum(n for name, n in found["rows"].items() if name != "slowest_seconds")
    slowest = f"slowest {found['rows']['slowest_seconds'] * 1000:.0f} ms"
    rows.append(["rows of JSONL, most of them broken", f"{tried:,} rows", f"{counted(found['rows'])}; {slowest}"])
    rows.append(
        ["options, most of them mistaken", f"{sum(found['options'].values())} options", counted(found["options"])]
    )
    minute = found["load"]
    came = f"{minute['answers']:,} answers as alone, {minute['wrong']} others, {minute['errors']} errors; "
    came += f"{minute['refused']} refused, too long; {minute['rss_before']} MiB, then {minute['rss_after']}"
    rows.append(["the demo, asked by many at once", f"{found['clients']} clients, {found['load_seconds']} s", came])
    return table(["what is done", "how often", "what comes of it"], rows)


TABLES = {"faults": faults}
