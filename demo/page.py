"""One page, a tab a system: what each trained run below out/ makes of an input that a person types.

A tab is a module with

    NAME, SYSTEM, WEIGHTS          its title; the `system` in config.json of its runs; the file that a trained one has
    TRAIN                          the command that trains one
    CSS, ABOUT                     of its own elements; one sentence on what is predicted from what
    load(run, data_dir, device)    -> tab: the model, what an input is held against, `run`, `about`, `max_characters`
    ask(tab, text)                 -> lines for the terminal, the answer in the last one; UserError if there is none
    build(tab)                     the elements of the tab, inside an open gr.Blocks

and loaded only if it has a run; a tab without a run prints how to train one.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from common.checkpoint import read_json
from common.options import UserError
from demo import answer, chain, drawing, ideas

TABS = (answer, chain, ideas)

PAGE_CSS = """
.gradio-container { width: 100%; max-width: 1200px !important; margin: 0 auto !important; }
.about, .label { opacity: .75; }
.message { padding: .6rem .8rem; border-left: 4px solid #D55E00; background: var(--background-fill-primary); }
"""
# Screen readers announce what changes in a result; an element must be marked before it does.
ANNOUNCE = """() => new MutationObserver(() => document.querySelectorAll('.live:not([aria-live])').forEach(
    (e) => e.setAttribute('aria-live', 'polite'))).observe(document.body, {childList: true, subtree: true})"""


def system_of(run: str | Path) -> str:
    """The system that a run's configuration names."""
    path = Path(run) / "config.json"
    if not path.is_file():
        raise UserError(f"no checkpoint in {run}; train one with: {TABS[0].TRAIN} --run {run}")
    return read_json(path).get("system", "")


def tab_of(run: str | Path) -> ModuleType:
    """The tab that shows a run."""
    system = system_of(run)
    for tab in TABS:
        if tab.SYSTEM == system:
            return tab
    raise UserError(f"{run} was trained by {system or 'another program'}, which has no tab here")


def is_of(run: Path, system: str) -> bool:
    """Was a folder trained by this system? Without a legible configuration it was not."""
    try:
        return system_of(run) == system
    except UserError:
        return False


def newest_runs(folder: str = "out") -> dict[str, str]:
    """{system: its newest trained run below a folder}; one that has ended before those that are still training."""
    found = {}
    for tab in TABS:
        weights = list(Path(folder).glob(f"*/{tab.WEIGHTS}"))
        age = {Path(folder, path.relative_to(folder).parts[0]): path.stat().st_mtime for path in weights}
        runs = [run for run in age if is_of(run, tab.SYSTEM)]
        if runs:
            found[tab.SYSTEM] = str(max(runs, key=lambda run: ((run / "summary.json").is_file(), age[run])))
    if not found:
        raise UserError(f"no trained run in {folder}/; train one with: {TABS[0].TRAIN}")
    return found


def css() -> str:
    """Of the page, its drawings and its tabs."""
    return "".join([PAGE_CSS, drawing.CSS, *(tab.CSS for tab in TABS)])


def build(loaded: dict[str, Any]) -> Any:
    """{system: what its module loaded} -> gr.Blocks."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
    import gradio as gr

    with gr.Blocks(title="nanoJEPA") as page:
        page.load(None, js=ANNOUNCE, api_visibility="private")
        gr.Markdown("# nanoJEPA")
        with gr.Tabs(selected=next(tab.SYSTEM for tab in TABS if tab.SYSTEM in loaded)):
            for tab in TABS:
                with gr.Tab(tab.NAME, id=tab.SYSTEM):
                    if tab.SYSTEM in loaded:
                        gr.Markdown(tab.ABOUT, elem_classes="about")
                        tab.build(loaded[tab.SYSTEM])
                        with gr.Accordion(f"About {loaded[tab.SYSTEM].run}", open=False):
                            gr.Markdown(loaded[tab.SYSTEM].about)
                    else:
                        how = f"No trained run is loaded. `{tab.TRAIN}` trains one, `python main.py` shows it."
                        gr.Markdown(f"{tab.ABOUT}\n\n{how}")
    return page
